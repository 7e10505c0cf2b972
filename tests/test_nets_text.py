"""Text encoders: causal, blind to padding, kept and opened whole, and those of `transformers` as they are."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from notan.errors import NotanError
from notan.methods._example import texts, tiny_text_encoder
from notan.nets.build import load_encoder, save_encoder
from notan.nets.language import new_tokenizer
from notan.nets.protocols import ImageEncoder, LanguageModel, TextEncoder
from notan.nets.text import GROUP, HubText, TextTransformer, build_text, cut, in_groups

SAID = texts(12)["text"]


@pytest.fixture
def encoder() -> TextTransformer:
    torch.manual_seed(0)
    return tiny_text_encoder().eval()


def test_it_keeps_the_protocol(encoder):
    assert isinstance(encoder, TextEncoder) and not isinstance(encoder, (ImageEncoder, LanguageModel))


def test_a_text_is_the_state_at_its_end_and_padding_is_not_seen(encoder):
    ids, pad = encoder.tokens(["a cat", "the cat saw a dog that ran"])
    end = encoder.tokenizer.eos_token_id
    length = int((~pad[0]).sum())
    assert ids[0, 0] == end and ids[0, length - 1] == end and pad[0, length:].all() and not pad[1].any()
    states = encoder(ids, pad)
    torch.testing.assert_close(encoder.pool(states, pad)[0], encoder(ids[:1, :length])[0, -1])
    changed = ids.clone()
    changed[0, length:] = 7
    torch.testing.assert_close(encoder(changed, pad)[0, :length], states[0, :length])
    changed = ids.clone()
    changed[1, 4] = 7                                                   # no state sees what comes after it
    torch.testing.assert_close(encoder(changed, pad)[1, :4], states[1, :4])
    assert not torch.allclose(encoder(changed, pad)[1, 4:], states[1, 4:])


def test_long_texts_are_cut_and_keep_their_end(encoder):
    ids, pad = encoder.tokens(["the cat saw a dog " * 20, ""])
    assert ids.shape == (2, encoder.context) and ids[0, -1] == encoder.tokenizer.eos_token_id
    assert (~pad[1]).sum() == 2 and torch.isfinite(encoder.features(["", "a"])).all()


def test_groups_of_like_length_give_what_all_at_once_gives(encoder):
    many = [("the cat saw a dog" if i % 9 == 4 else SAID[i % 3][:5]) for i in range(GROUP + 9)]
    seen = []

    def read(ids, pad):
        seen.append(ids.shape)
        return encoder.pool(encoder(ids, pad), pad)

    ids, pad = encoder.tokens(many)
    torch.testing.assert_close(in_groups(read, ids, pad), encoder.pool(encoder(ids, pad), pad))
    assert [n for n, _ in seen] == [GROUP, 9] and seen[0][1] < seen[1][1]


def test_bfloat16_attention_is_causal_too(encoder):
    ids, pad = encoder.tokens(SAID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(ids, pad)
    torch.testing.assert_close(half.float(), encoder(ids, pad), rtol=0.1, atol=0.1)


def test_it_is_kept_and_opened_whole(encoder, tmp_path):
    save_encoder(encoder, tmp_path)
    for again in (load_encoder(tmp_path), build_text(str(tmp_path))):
        assert torch.equal(again.features(SAID), encoder.features(SAID)) and again.config == encoder.config
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(NotanError, match="does not fit its config"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotanError, match=r"model\.safetensors"):
        load_encoder(tmp_path)


def tight(tokenizer):
    """A tokenizer that puts its end token before and after each text, as CLIP's does."""
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{end[0]} $A {end[0]}", special_tokens=[end])
    return tokenizer


def bert(tokenizer):
    return BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=64, max_position_embeddings=40))


def clip(tokenizer):
    end = tokenizer.eos_token_id
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                        intermediate_size=64, max_position_embeddings=40, eos_token_id=end, bos_token_id=end))


@pytest.mark.parametrize("make", [bert, clip])
def test_a_text_model_of_transformers_is_one(make, tmp_path):
    torch.manual_seed(0)
    tokenizer = tight(new_tokenizer(SAID, 300, 40))
    make(tokenizer).save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    encoder = build_text(f"hf:{tmp_path / 'theirs'}").eval()
    assert isinstance(encoder, HubText) and isinstance(encoder, TextEncoder) and encoder.context == 40
    z = encoder.features(SAID)
    assert z.shape == (12, 32)
    torch.testing.assert_close(encoder.features(SAID[:1]), z[:1], rtol=1e-4, atol=1e-5)         # whatever length others have
    save_encoder(encoder, tmp_path / "ours")
    assert torch.equal(load_encoder(tmp_path / "ours").features(SAID), z)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["name"] == "hf-text"


@pytest.mark.parametrize("said", [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}])
def test_a_sentence_encoder_pools_as_its_makers_say(said, tmp_path):
    tokenizer = tiny_text_encoder().tokenizer
    wide = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(**wide, vocab_size=len(tokenizer), max_position_embeddings=16)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mean = build_text(f"hf:{tmp_path}").eval()
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, **said}))
    first = build_text(f"hf:{tmp_path}").eval()
    states = first(*first.tokens(["a cat"]))
    torch.testing.assert_close(first.features(["a cat"]), states[:, 0])
    torch.testing.assert_close(mean.features(["a cat"]), states.mean(1))
    save_encoder(first, tmp_path / "kept")
    torch.testing.assert_close(load_encoder(tmp_path / "kept").features(SAID), first.features(SAID))
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(NotanError, match="pools its tokens by max"):
        build_text(f"hf:{tmp_path}")


def test_what_cannot_be_built_is_named(tmp_path):
    with pytest.raises(NotanError, match="no text encoder 'txt'"):
        build_text("txt:dim=8")
    with pytest.raises(NotanError, match="without a tokenizer"):
        build_text("text:dim=8")
    new_tokenizer(SAID, 300, 40).save_pretrained(tmp_path)
    with pytest.raises(NotanError, match="no option 'deep'"):
        build_text(f"text:deep=8,tokenizer={tmp_path}")
    with pytest.raises(NotanError, match="context of 2"):
        build_text(f"text:context=2,tokenizer={tmp_path}")
    with pytest.raises(NotanError, match="cannot load"):
        build_text(f"hf:{tmp_path / 'nothing'}")


@pytest.mark.parametrize("make", [None, bert, clip])
def test_how_many_texts_are_cut_is_how_many_lose_tokens(make, caplog):
    tokenizer = tight(new_tokenizer(SAID, 300, 12))
    short = TextTransformer(tokenizer, dim=32, depth=1, heads=2, context=12)
    wide = TextTransformer(tokenizer, dim=32, depth=1, heads=2, context=200)
    if make is not None:
        short, wide = (HubText(make(tokenizer), tokenizer, source="here") for _ in range(2))
        short.context, wide.context = 12, 200
    texts = ["", "a", *SAID, *(" ".join(["cat"] * n) for n in range(1, 20)), "the cat saw a dog " * 8]
    whole, seen = ((~encoder.tokens(texts)[1]).sum(1).tolist() for encoder in (wide, short))
    assert short.lengths(texts) == whole == wide.lengths(texts)
    found = cut(short, texts)
    assert found == (sum(a > b for a, b in zip(whole, seen)), len(texts), max(whole), 12)
    assert 0 < found.cut < len(texts) and 12 in whole and max(seen) == 12      # one that just fits is not cut
    assert cut(wide, texts).cut == 0 and cut(wide, []) == (0, 0, 0, 200)
    assert "longer than the specified maximum" not in caplog.text
