"""Two encoders with a joint space, and vectors among their tokens: ours and those of `transformers`."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn

from notan.errors import NotanError
from notan.methods._example import texts, tiny_text_encoder
from notan.nets.build import build_dual, is_dual, load_encoder, save_encoder
from notan.nets.convnet import ConvNet
from notan.nets.dual import Dual, head, released
from notan.nets.insert import count, inserted, replaced, through
from notan.nets.protocols import DualEncoder
from notan.nets.vit import ViT
from notan.runs.embed import embed, encoding, opened_for
from notan.runs.micro import parts_of
from notan.runs.search import search

SAID = texts(5)["text"]


def ours(dtype=torch.float64):
    torch.manual_seed(0)
    words = tiny_text_encoder()
    return Dual(ViT(16, patch=4, dim=32, depth=3, heads=2), words, head(32, 8), head(32, 8), tau=0.05).to(dtype).eval()


def saved_hub(folder, kind="clip"):
    import transformers as T

    wide = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    words = tiny_text_encoder().tokenizer
    if kind == "clip":                                                  # as CLIP's: one token before the text, another after it
        words.add_special_tokens({"bos_token": "<|start|>"})
        ends = [(words.bos_token, words.bos_token_id), (words.eos_token, words.eos_token_id)]
        words.backend_tokenizer.post_processor = TemplateProcessing(single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends)
    text = wide | {"vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 24,
                   **{f"{name}_token_id": words.eos_token_id for name in ("bos", "eos", "pad")}}
    vision = wide | {"image_size": 16, "patch_size": 4}
    torch.manual_seed(0)
    if kind == "clip":
        model = T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    else:
        model = T.SiglipModel(T.SiglipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    words.model_max_length = 16
    words.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}))
    return model.eval()


# ---- vectors among tokens -----------------------------------------------------------------------------------------------

def test_vectors_are_put_at_each_rows_own_place():
    x, v = torch.arange(10.0).view(2, 5, 1), torch.tensor([[[-1.0], [-2.0]]])
    assert inserted(x, v, 1)[:, :, 0].tolist() == [[0, -1, -2, 1, 2, 3, 4], [5, -1, -2, 6, 7, 8, 9]]
    assert inserted(x, v, torch.tensor([5, 0]))[:, :, 0].tolist() == [[0, 1, 2, 3, 4, -1, -2], [-1, -2, 5, 6, 7, 8, 9]]
    assert torch.equal(inserted(x, v, 3), inserted(x, v, torch.tensor([3, 3])))
    assert replaced(x, v, 2)[:, :, 0].tolist() == [[0, 1, -1, -2, 4], [5, 6, -1, -2, 9]]
    assert count(()) == 0 and count((v, v)) == 2


def test_deep_vectors_are_thrown_away_before_the_next_block_and_the_last_live_on():
    seen = []

    class Add(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x + 1

    x, extra = torch.zeros(1, 3, 1), (torch.zeros(1, 1, 1), torch.full((1, 1, 1), 10.0))
    out = through(nn.ModuleList([Add(), Add(), Add()]), x, extra, 2)
    assert [s[0, :, 0].tolist() for s in seen] == [[0, 0, 0], [1, 1, 10], [2, 2, 11]] and out[0, :, 0].tolist() == [3, 3, 12]
    with pytest.raises(NotanError, match="4 blocks in an encoder of 3"):
        through(nn.ModuleList([Add(), Add(), Add()]), x, extra * 2, 2)


@pytest.mark.parametrize("which", ["ours", "clip", "siglip"])
def test_hiding_nothing_changes_nothing_and_a_vector_changes_all(which, tmp_path):
    if which != "ours":
        saved_hub(tmp_path, which)
    dual = ours() if which == "ours" else released(str(tmp_path)).double().eval()
    x, none = torch.rand(5, 3, 16, 16, dtype=torch.float64), torch.zeros(5, 16, dtype=torch.bool)
    torch.testing.assert_close(dual.image(x, none), dual.image(x), rtol=1e-9, atol=1e-9)
    some = none.clone()
    some[:, 5:9] = True
    hidden = dual.image(x, some)
    changed = x.clone()
    changed[:, :, 4:8, 4:16], changed[:, :, 8:12, :4] = 0, 1            # patches 5 to 8
    torch.testing.assert_close(dual.image(changed, some), hidden, rtol=1e-9, atol=1e-9)
    assert (dual.image(changed) - dual.image(x)).abs().max() > 1e-4
    width = dual.image_encoder.dim
    v = tuple(torch.randn(1, 2, width, dtype=torch.float64, requires_grad=True) for _ in range(3))
    z = dual.image(x, some, v)
    assert z.shape == hidden.shape and (z - hidden).abs().max() > 1e-4
    z.pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in v)
    states = dual.image_encoder.states(x, some, v)
    assert states.shape[1] == dual.image_encoder.prefix + 12 + 2
    each = torch.randn(5, 2, width, dtype=torch.float64)
    torch.testing.assert_close(dual.image(x, None, (each,))[3], dual.image(x[3:4], None, (each[3:4],))[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["ours", "clip", "siglip"])
def test_words_own_vectors_put_by_hand_are_the_text_with_those_words(which, tmp_path):
    """Prompts that are the vectors of two words give what the text gives that begins with these words."""
    if which != "ours":
        saved_hub(tmp_path, which)
    dual = ours() if which == "ours" else released(str(tmp_path)).double().eval()
    encoder = dual.text_encoder
    begin = encoder.tokenizer("a b", add_special_tokens=False)["input_ids"]
    table = encoder.token_embedding if which == "ours" else encoder.model.embeddings.token_embedding
    vectors = table(torch.tensor(begin))[None]                          # (1, K, D)
    torch.testing.assert_close(dual.text([" x", " yy x"], (vectors,)), dual.text(["a b x", "a b yy x"]), rtol=1e-9, atol=1e-9)
    more = torch.randn_like(vectors)
    assert (dual.text([" x"], (vectors, more)) - dual.text([" x"], (vectors,))).abs().max() > 1e-6
    with pytest.raises(NotanError, match="places of 16 tokens"):
        dual.text(["x"], (torch.zeros(1, 20, encoder.dim, dtype=torch.float64),))


def test_the_places_of_vectors_come_out_of_what_a_text_may_have():
    encoder = tiny_text_encoder()
    ids, _ = encoder.tokens(["a " * 40], room=3)
    assert ids.shape == (1, 16) and ids[0, :4].tolist() == [encoder.tokenizer.eos_token_id] * 4 == [ids[0, -1]] * 4


# ---- whole models ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_released_model_gives_what_transformers_gives(kind, tmp_path):
    model = saved_hub(tmp_path, kind)
    dual = build_dual(f"hf:{tmp_path}").eval()
    assert isinstance(dual, DualEncoder) and is_dual(f"hf:{tmp_path}") and is_dual(str(tmp_path))
    x = torch.rand(3, 3, 16, 16)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    theirs = model.get_image_features(pixel_values=(x - mean) / std).pooler_output
    torch.testing.assert_close(dual.image(x), theirs)
    read = dual.text_encoder.tokenizer(SAID, return_tensors="pt", padding="max_length" if kind == "siglip" else True,
                                       max_length=16, truncation=True)
    if kind == "siglip":
        del read["attention_mask"]                                      # it is trained on texts that see their padding
    torch.testing.assert_close(dual.text(SAID), model.get_text_features(**read).pooler_output)
    assert float(dual.tau) == pytest.approx(float((-model.logit_scale.detach()).exp()))


@pytest.mark.parametrize("which", ["ours", "clip"])
def test_it_is_saved_and_loaded_whole(which, tmp_path):
    if which == "clip":
        saved_hub(tmp_path / "hub")
    dual = ours(torch.float32) if which == "ours" else released(str(tmp_path / "hub")).eval()
    save_encoder(dual, tmp_path / "here")
    again = load_encoder(tmp_path / "here")
    x = torch.rand(3, 3, 16, 16)
    assert torch.equal(again.image(x), dual.image(x)) and torch.equal(again.text(SAID), dual.text(SAID))
    assert again.config == dual.config and float(again.tau) == pytest.approx(float(dual.tau))
    found = encoding(tmp_path / "here")({"image": (x * 255).to(torch.uint8), "captions": [[t, "other"] for t in SAID]})
    assert found["image"].shape == (3, 8) and torch.equal(found["text"], dual.text(SAID))


def test_a_fresh_one_is_built_from_its_config(tmp_path):
    words = tiny_text_encoder()
    words.tokenizer.save_pretrained(tmp_path)
    pictures = {"name": "vit", "image_size": 16, "channels": 3, "patch": 4, "dim": 32, "depth": 1, "heads": 2}
    said = {"name": "text", "dim": 32, "depth": 1, "heads": 2, "tokenizer": str(tmp_path)}
    dual = build_dual({"name": "dual", "image_encoder": pictures, "text_encoder": said, "dim": 12, "tau": 0.1})
    assert dual.dim == 12 and float(dual.tau) == pytest.approx(0.1)


def test_odd_ones_are_refused(tmp_path):
    conv = Dual(ConvNet(image_size=16, channels=3), tiny_text_encoder(), head(256, 8), head(32, 8), tau=0.1)
    with pytest.raises(NotanError, match="ConvNet, which has no tokens"):
        conv.patches(torch.rand(1, 3, 16, 16))
    with pytest.raises(NotanError, match="width 8 and texts of width 9"):
        Dual(ViT(16, patch=4), tiny_text_encoder(), head(192, 8), head(32, 9), tau=0.1)
    with pytest.raises(NotanError, match="holds no two encoders"):
        build_dual(str(tmp_path))
    with pytest.raises(NotanError, match="is no dual encoder"):
        build_dual("vit")
    assert not is_dual(str(tmp_path))


def test_parts_of_a_batch_cut_vectors_of_its_rows_and_no_others():
    dual = ours()
    x, each = torch.rand(5, 3, 16, 16, dtype=torch.float64), torch.randn(5, 2, 32, dtype=torch.float64)
    shared = torch.randn(1, 2, 32, dtype=torch.float64)
    run = parts_of(dual.image, 2)
    torch.testing.assert_close(run(x, None, (each, shared)), dual.image(x, None, (each, shared)), rtol=1e-9, atol=1e-9)


def test_a_released_model_is_searched_by_words_and_a_sentence_encoder_by_texts(tmp_path):
    import numpy as np
    from PIL import Image

    saved_hub(tmp_path / "clip")
    (tmp_path / "photos").mkdir()
    for i, colour in enumerate(((200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0))):
        Image.new("RGB", (20, 20), colour).save(tmp_path / "photos" / f"{i}.png")
    embed(f"hf:{tmp_path / 'clip'}", tmp_path / "photos", out=tmp_path / "index", precision="fp32")
    assert opened_for(f"hf:{tmp_path / 'clip'}", tmp_path / "photos", None).info.image_size == 16, "read as the model reads"
    assert opened_for(f"hf:{tmp_path / 'clip'}", tmp_path / "photos", {"cache_side": 12}).info.image_size == 12
    found = search(tmp_path / "index", "a cat")
    dual = released(str(tmp_path / "clip")).eval()
    opened = [Image.open(tmp_path / "photos" / f"{i}.png").resize((16, 16)) for i in range(4)]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in opened]).float() / 255
    with torch.no_grad():
        s = torch.cosine_similarity(dual.text(["a cat"]), dual.image(pixels))
    assert [Path(hit.path).name for hit in found.hits] == [f"{i}.png" for i in s.argsort(descending=True)]
    assert [hit.score for hit in found.hits] == pytest.approx(s.sort(descending=True).values.tolist(), abs=2e-3)


def test_a_sentence_encoder_of_the_hub_gives_a_table_of_texts(tmp_path):
    import pyarrow.parquet as pq
    from transformers import BertConfig, BertModel

    words = tiny_text_encoder().tokenizer
    BertModel(BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=len(words),
                         max_position_embeddings=16)).save_pretrained(tmp_path / "bert")
    words.save_pretrained(tmp_path / "bert")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(9)["text"]))
    table = pq.read_table(embed(f"hf:{tmp_path / 'bert'}", tmp_path / "texts.jsonl", out=tmp_path / "e.parquet"))
    assert len(table["feature"][0]) == 24 and len(table) > 4
