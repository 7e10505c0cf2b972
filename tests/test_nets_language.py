"""Language models with their tokenizers: built, kept, opened by `transformers`, and adapted by sums of low rank."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, AutoTokenizer

from notan.errors import NotanError
from notan.methods._example import texts, tiny_language_model
from notan.nets.build import load_encoder, save_encoder
from notan.nets.language import CausalLM, build_language, gpt2, new_tokenizer
from notan.nets.lora import add_lora, merged
from notan.nets.protocols import ImageEncoder, LanguageModel

SAID = texts(12)["text"]


@pytest.fixture
def model() -> CausalLM:
    torch.manual_seed(0)
    return tiny_language_model().eval()


def test_it_keeps_the_protocol(model):
    assert isinstance(model, LanguageModel) and not isinstance(model, ImageEncoder)
    assert (model.dim, model.context) == (32, 32) and model.config["name"] == "gpt2"


def test_a_tokenizer_writes_any_text_and_is_a_function_of_its_texts():
    first, again = (new_tokenizer(SAID, 300, 64) for _ in range(2))
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str() and 257 < len(first) <= 300
    for text in ("the cat", "  zwei Wörter\n", "光と影 🙂"):
        assert first.decode(first(text)["input_ids"]) == text
    assert first.backend_tokenizer.to_str() != new_tokenizer(SAID[:3], 300, 64).backend_tokenizer.to_str()


def test_tokens_are_padded_on_the_right_and_cut_at_the_end(model):
    ids, pad = model.tokens(["a cat", "", "the cat saw a dog"])
    alone = model.tokenizer("a cat")["input_ids"]
    assert ids[0, : len(alone)].tolist() == alone and not pad[0, : len(alone)].any() and pad[0, len(alone):].all()
    assert pad[1].all() and not pad[2].any()
    assert model.tokens(["the cat saw a dog " * 20])[0].shape == (1, 32)
    assert torch.equal(model.tokens(["the cat saw a dog"], 3)[0], ids[2:, :3])


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_states_are_what_the_head_reads_and_padding_is_not_seen(family):
    model = tiny(family)
    language = CausalLM(model, None, {})
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    z, h = language(ids)
    torch.testing.assert_close(model.get_output_embeddings()(h), z)
    assert torch.equal(language.states(ids), h) and not model.get_output_embeddings()._forward_pre_hooks
    longer = torch.cat([ids, ids[:, :3] * 0 + 9], dim=1)
    torch.testing.assert_close(language(longer)[1][:, :7], h)
    masked = model(input_ids=longer, attention_mask=(torch.arange(10) < 7).long().expand(2, -1)).logits[:, :7]
    torch.testing.assert_close(masked, z)


def test_a_saved_folder_is_one_of_transformers(model, tmp_path):
    save_encoder(model, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not [n for n in names if n.startswith(".part")]
    stock, words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids, _ = model.tokens(SAID)
    assert words(SAID)["input_ids"] == model.tokenizer(SAID)["input_ids"] and words.pad_token_id == 0
    assert torch.equal(stock(ids).logits, model(ids)[0])
    for again in (load_encoder(tmp_path), build_language(f"hf:{tmp_path}"), build_language(str(tmp_path))):
        assert torch.equal(again.eval().features(SAID), model.features(SAID)) and again.config["source"] == str(tmp_path)


def test_config_rebuilds_the_module_around_its_tokenizer(model, tmp_path):
    model.tokenizer.save_pretrained(tmp_path)
    again = build_language({**model.config, "tokenizer": str(tmp_path)})
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert again.config == model.config


@pytest.mark.parametrize(("spec", "said"), [
    ("gpt3", "no language model 'gpt3'.*did you mean 'gpt2'"), ("gpt2:dim=32", "without a tokenizer"),
    ("gpt2:tokenizer=/nowhere/at/all", "no tokenizer in /nowhere"),
    ("hf:/nowhere/at/all", "/nowhere/at/all is no language model"),
])
def test_what_cannot_be_built_is_named(spec, said):
    with pytest.raises(NotanError, match=f"(?s){said}"):
        build_language(spec)


def test_options_are_checked(tmp_path):
    words = new_tokenizer(SAID, 280, 64)
    words.save_pretrained(tmp_path)
    with pytest.raises(NotanError, match=r"(?s)no option 'width'.*dim, depth"):
        build_language(f"gpt2:width=3,tokenizer={tmp_path}")
    with pytest.raises(NotanError, match="dim 30 with 4 heads"):
        gpt2(words, dim=30, depth=1, heads=4, context=16)
    with pytest.raises(NotanError, match="vocabulary of 100"):
        new_tokenizer(SAID, 100, 64)


# ---- low rank --------------------------------------------------------------------------------------------------------

def adapted(family: str) -> CausalLM:
    language = CausalLM(tiny(family), None, {})
    add_lora(language.model, 2, alpha=4.0)
    with torch.no_grad():
        for name, p in language.named_parameters():
            if name.endswith(".B"):
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return language


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_merged_model_is_the_adapted_one(family):
    language, plain = adapted(family), tiny(family, seed=5)
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    assert (language(ids)[0] - tiny(family)(ids).logits).abs().max() > 1e-2             # it does change the model
    state = merged(language.model)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(ids).logits, language(ids)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_the_papers_sum(family):
    """A row vector x gives x W^T + (alpha / r) x A^T B^T, in GPT-2's layers, which hold W^T, as in all others."""
    language, plain = adapted(family), tiny(family)
    name, layer = next((n, m) for n, m in language.model.named_modules() if parametrize.is_parametrized(m))
    added, x = layer.parametrizations.weight[0], torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain.get_submodule(name)(x) + 4.0 / 2 * x @ added.A.T @ added.B.T)


def test_only_the_sums_learn_and_start_as_nothing():
    model = tiny("llama")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    add_lora(model, 2, alpha=4.0)
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(learning) == 2 * 7 * 2 and all(n.endswith((".A", ".B")) for n in learning)      # 7 layers of 2 blocks
    assert all(torch.equal(merged(model)[k], v) for k, v in before.items())


def test_a_rank_below_one_is_refused():
    with pytest.raises(NotanError, match="LoRA of rank -1"):
        add_lora(tiny("gpt2"), -1, alpha=1.0)
