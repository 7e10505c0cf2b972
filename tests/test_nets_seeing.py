"""Language models that see, read at a token of their own: what the vector depends on, how they are kept, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import IMAGE as PLACE
from tiny_models import prompts, tiny
from transformers import AutoModelForImageTextToText, AutoProcessor

from notan.data import DataInfo
from notan.errors import NotanError
from notan.methods._example import images, tiny_language_model, tiny_seeing_model
from notan.nets.build import build_seeing, load_encoder, save_encoder
from notan.nets.language import explained
from notan.nets.lora import add_lora
from notan.nets.protocols import DualEncoder, ImageEncoder, LanguageModel, SeeingModel, TextEncoder
from notan.nets.seeing import Seeing, freeze, own_side

X = images(4)["image"].double() / 255
ASKED = ["what is it", "how many", "which colour does the old house by the sea have", ""]
TEMPLATE = ("{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
            "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} so:{% endif %}")


@pytest.fixture
def model() -> Seeing:
    """Its tokenizer pads on the left by itself, as those of many models do."""
    torch.manual_seed(0)
    model = tiny_seeing_model().double().eval()
    model.tokenizer.padding_side = "left"
    return model


def test_it_keeps_its_protocol_and_no_other(model):
    assert isinstance(model, SeeingModel)
    assert not any(isinstance(model, kind) for kind in (DualEncoder, ImageEncoder, LanguageModel, TextEncoder))
    assert not isinstance(tiny_language_model(), SeeingModel)
    assert (model.dim, model.channels, model.image_size) == (32, 3, 16)
    assert model.context == 64 - 1 - 17                                 # less the readout, 16 patches and a line's end


def by_hand(model: Seeing, pixels: torch.Tensor | None, text: str) -> torch.Tensor:
    """The states of one row without the class: words and patches put side by side, the readout's vector behind them."""
    inner, words = model.model.model, model.model.get_input_embeddings()
    def read(said: str) -> torch.Tensor:
        return words(torch.tensor(model.tokenizer(said, add_special_tokens=False)["input_ids"], dtype=torch.long))
    parts = [read(f"\n{text}" if pixels is not None else text), model.readout.vector[None]]
    if pixels is not None:
        seen = inner.vision_tower(2 * pixels[None] - 1).last_hidden_state[:, 1:]
        parts.insert(0, inner.multi_modal_projector(seen)[0])
    return model.readout.P(inner.language_model(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0, -1])


def test_a_vector_is_the_state_above_the_readout(model):
    with torch.no_grad():
        z, u = model.image(X, ASKED), model.text(ASKED[:3])
        for row in range(4):
            torch.testing.assert_close(z[row], by_hand(model, X[row], ASKED[row]), rtol=1e-6, atol=1e-6)    # float32 pixels
        for row in range(3):
            torch.testing.assert_close(u[row], by_hand(model, None, ASKED[row]), rtol=1e-9, atol=1e-9)


def test_it_depends_on_picture_and_instruction_and_on_nothing_else_in_the_batch(model):
    with torch.no_grad():
        z = model.image(X, ASKED)
        for row in range(4):
            torch.testing.assert_close(model.image(X[row : row + 1], ASKED[row : row + 1])[0], z[row], rtol=1e-9, atol=1e-9)
        assert (model.image(X, ASKED[::-1]) - z).abs().amax(1).min() > 1e-4
        assert (model.image(X.flip(0), ASKED) - z).abs().amax(1).min() > 1e-4
        torch.testing.assert_close(model.features(X), model.image(X, [""] * 4))
        torch.testing.assert_close(model.image(X[:, :1], ASKED), model.image(X[:, :1].expand(-1, 3, -1, -1), ASKED))


def around(family: str) -> Seeing:
    """A tiny model of a family, without a processor: its rows are given."""
    tokenizer = SimpleNamespace(pad_token_id=2)

    class Rows(Seeing):
        def _rows(self, pixels, said):
            return {"input_ids": torch.zeros(1, 9)}

    torch.manual_seed(0)
    return Rows(tiny(family), SimpleNamespace(tokenizer=tokenizer), {}, dim=16, image_size=8).double().eval()


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_what_comes_after_the_readout_changes_nothing(family):
    model, rows = around(family), prompts(family, pads=(0, 0))
    short = {**rows, "attention_mask": rows["attention_mask"].clone()}
    short["attention_mask"][0, -2:] = 0                                 # the first row ends two tokens before the second
    with torch.no_grad():
        z = model.read(short)
        other = {**short, "input_ids": short["input_ids"].clone()}
        other["input_ids"][0, -2:] = 7                                  # what stands in the padding
        torch.testing.assert_close(model.read(other), z, rtol=1e-9, atol=1e-9)
        assert (model.read(rows)[0] - z[0]).abs().max() > 1e-4          # and counts where it is none
        last = (short["attention_mask"][0].sum() - 1).item()
        other["input_ids"][0, last] = 11                                # the end of the instruction
        assert (model.read(other)[0] - z[0]).abs().max() > 1e-4
        torch.testing.assert_close(model.read(other)[1], z[1], rtol=1e-9, atol=1e-9)
        seen = {**short, "pixel_values": short["pixel_values"].flip(0)}
        assert (model.read(seen) - z).abs().amax(1).min() > 1e-4
    assert (short["input_ids"] == PLACE).sum() == 8                     # and what was given is as it was


def test_instructions_are_cut_and_a_picture_s_sign_in_words_is_a_space(model):
    said = " ".join(["word"] * 200)
    assert model.lengths([said])[0] > model.context
    with torch.no_grad():
        z = model.image(X[:1], [said])
        assert torch.isfinite(z).all() and torch.isfinite(model.text([said, "a"])).all()
        torch.testing.assert_close(model.image(X[:1], ["a <image> b"]), model.image(X[:1], ["a   b"]))
        assert torch.isfinite(model.text(["", "<image>"])).all()


def test_signs_of_the_tokenizer_s_own_are_no_part_of_a_text(model):
    """An answer that names a picture or ends a turn is words."""
    end = model.tokenizer.eos_token
    with torch.no_grad():
        torch.testing.assert_close(model.text([f"a {end} b<image>"]), model.text(["a   b "]))
    model.processor.chat_template = TEMPLATE
    assert model.tokenizer.decode(model._rows(None, [""])["input_ids"][0]) == " so:"      # an empty text is one, too


def test_each_row_brings_its_own_picture(model):
    """A flat list is the pictures of one row to processors of several families."""
    given, whole = [], model.processor.__class__.__call__

    def call(self, images=None, **more):
        given.append(images)
        return whole(self, images=images, **more)

    kind = type("Spied", (model.processor.__class__,), {"__call__": call})
    model.processor.__class__ = kind
    model.image(X, ASKED)
    assert [len(one) for one in given[0]] == [1, 1, 1, 1]
    with pytest.raises(NotanError, match="2 instructions for 4 pictures"):
        model.image(X, ["a", "b"])


def test_a_chat_template_is_used_where_there_is_one(model):
    plain = model.image(X, ASKED).detach()
    model.processor.chat_template = TEMPLATE
    with torch.no_grad():
        z = model.image(X, ASKED)
        assert (z - plain).abs().amax(1).min() > 1e-5
        ids = model._rows(X[:1], ["how many"])["input_ids"][0]
        assert model.tokenizer.decode(ids[16:]) == "how many so:"
        assert model.tokenizer.decode(model._rows(None, ["how many"])["input_ids"][0]) == "how many so:"


def test_its_folder_opens_here_and_in_transformers(model, tmp_path):
    model = model.float()
    freeze(model.model, pictures=True, words=True)
    add_lora(model.model.get_decoder(), 4, 8.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".B"):
                p.normal_(std=0.05)                                     # a change that is to be seen in the folder
        z, u = model.image(X.float(), ASKED), model.text(ASKED[:3])
        save_encoder(model, tmp_path / "kept")
        for opened in (load_encoder(tmp_path / "kept"), build_seeing(str(tmp_path / "kept")).eval()):
            torch.testing.assert_close(opened.image(X.float(), ASKED), z)
            torch.testing.assert_close(opened.text(ASKED[:3]), u)
        theirs, processor = (kind.from_pretrained(tmp_path / "kept") for kind in (AutoModelForImageTextToText, AutoProcessor))
        ids = processor(text=["the cat"], return_tensors="pt")["input_ids"]
        torch.testing.assert_close(theirs(input_ids=ids).logits, model.model(input_ids=ids).logits)
    grey = DataInfo("grey", 4, ("image",), 16, 1)
    assert build_seeing(f"hf:{tmp_path / 'kept'}", grey).image_size == 16                       # the processor takes any channels
    other = build_seeing({"name": "hf", "source": str(tmp_path / "kept"), "dim": 32})
    assert other.dim == 32
    with pytest.raises(NotanError, match=r"space of 32 numbers, and 5 were asked"):
        build_seeing({"name": "hf", "source": str(tmp_path / "kept"), "dim": 5})
    (tmp_path / "kept" / "readout.safetensors").unlink()
    assert build_seeing(f"hf:{tmp_path / 'kept'}").dim == 768           # a model that has no space yet
    assert build_seeing(f"hf:{tmp_path / 'kept'}", DataInfo("d", 4, ("image",), 64, 3)).image_size == 16
    (tmp_path / "kept" / "readout.safetensors").write_bytes(b"no such thing")
    with pytest.raises(NotanError, match=r"readout.safetensors cannot be read"):
        build_seeing(f"hf:{tmp_path / 'kept'}")


def test_a_model_that_takes_any_side_keeps_the_data_s(model, tmp_path):
    model = model.float()
    model.processor.image_processor.do_center_crop = False              # as those that cut pictures into many pieces
    model.processor.image_processor.size = {"shortest_edge": 16}
    assert own_side(model.processor) == 0 and own_side(tiny_seeing_model().processor) == 16
    model.image_size = 40
    save_encoder(model, tmp_path / "kept")
    info = DataInfo("d", 4, ("image",), 64, 3)
    assert load_encoder(tmp_path / "kept").image_size == build_seeing(f"hf:{tmp_path / 'kept'}", info).image_size == 40
    (tmp_path / "kept" / "readout.safetensors").unlink()
    assert build_seeing(f"hf:{tmp_path / 'kept'}", info).image_size == 64


def test_what_cannot_be_read_this_way_is_refused_by_name(model, tmp_path, monkeypatch):
    save_encoder(model.float(), tmp_path / "kept")
    (tmp_path / "kept" / "readout.safetensors").unlink()
    whole = Seeing.read
    monkeypatch.setattr(Seeing, "read", lambda self, rows: whole(self, rows).cumsum(0).flip(0))
    with pytest.raises(NotanError, match=r"depends on the rows beside it.*causal language model"):
        build_seeing(f"hf:{tmp_path / 'kept'}")

    def refuses(self, rows):
        raise ValueError("images are expected")
    monkeypatch.setattr(Seeing, "read", refuses)
    with pytest.raises(NotanError, match=r"kept does not read pictures with words, and words alone: images are expected"):
        build_seeing(f"hf:{tmp_path / 'kept'}")
    monkeypatch.setattr(model.model, "get_encoder", lambda modality: model.model)
    with pytest.raises(NotanError, match="of a LlavaForConditionalGeneration cannot be told apart"):
        freeze(model.model, pictures=True, words=True)


def test_a_missing_package_names_its_extra():
    with pytest.raises(NotanError, match=r"needs a package.*notan\[seeing\]"), explained("x", "an image-text-to-text model"):
        raise ImportError("requires the Torchvision library")
    with pytest.raises(NotanError, match=r"notan\[gguf\]"), explained("x.gguf", "a causal language model, or a .gguf file"):
        raise ImportError("gguf")


@pytest.mark.parametrize(("pictures", "words", "learn"), [
    (True, True, ("model.multi_modal_projector",)), (True, False, ("model.multi_modal_projector", "model.language_model")),
    (False, True, ("model.multi_modal_projector", "model.vision_tower"))])
def test_what_is_kept_as_it_is(model, pictures, words, learn):
    model.model.model.vision_tower.post_layernorm.requires_grad_(True)
    freeze(model.model, pictures=pictures, words=words)
    for name, p in model.model.named_parameters():
        assert p.requires_grad == name.startswith(learn), name


def test_a_qwen_s_bridge_learns_though_its_picture_encoder_does_not():
    model = tiny("qwen2_vl")
    freeze(model, pictures=True, words=True)
    assert {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"merger"}


def test_odd_specs_are_named(tmp_path):
    tokenizer = tiny_seeing_model().tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for spec, said in (("bert", "no language model 'bert' that sees"), ("llava", "without a tokenizer"),
                       (f"llava:tokenizer={tmp_path / 'tokenizer'},width=8", "no option 'width'"),
                       (f"llava:tokenizer={tmp_path / 'tokenizer'},dim=30", "llava of dim 30 with 4 heads"),
                       (f"llava:tokenizer={tmp_path / 'tokenizer'},heads=0", "heads = 0"),
                       (f"llava:tokenizer={tmp_path / 'tokenizer'},image_size=100,patch=12", "patch=10"),
                       (f"llava:tokenizer={tmp_path / 'tokenizer'},context=60", r"a context of 60 tokens.*context=19\d"),
                       (f"hf:{tmp_path / 'nothing'}", "is no language model")):
        with pytest.raises(NotanError, match=said):
            build_seeing(spec)
