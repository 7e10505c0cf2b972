"""Words and pictures as rows, end to end on a tiny LLaVA with its processor in a folder."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from test_runs_decode import WORDS, saved
from tiny_models import IMAGE, tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from notan import catalogue
from notan.cli import main
from notan.errors import NotanError
from notan.runs.decode import decode, greedy
from notan.runs.generation import each_picture_once
from notan.runs.prompts import given_with, rows_of
from notan.runs.reader import load
from notan.strategies._strategy import Context
from notan.strategies.vcd import noised

SEES = [slug for slug, e in catalogue.strategies().items() if "image" in e.card["needs"]]
TEMPLATE = ("{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
            "{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}w5")


def picture(seed: int) -> Image.Image:
    g = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (20, 24, 3), generator=g).byte().numpy())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sees"
    words = {w: i for i, w in enumerate([*WORDS[:IMAGE], "<image>"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "additional_special_tokens": ["<image>"]}
    side = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    LlavaProcessor(CLIPImageProcessorPil(**side), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), patch_size=4,
                   vision_feature_select_strategy="default", chat_template=TEMPLATE,
                   num_additional_image_tokens=1).save_pretrained(folder)
    tiny("llava", dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reader(model):
    return load(model)


@pytest.mark.parametrize("slug", [*SEES, "lqcd", "icd", "contrastive_search"])
def test_a_batch_of_pictures_is_its_prompts_one_by_one(reader, slug):
    loaded, processor = reader
    asked, seen = ["w1 w2 w3 .", "w9 w4 w5 w6 w7 ."], [picture(0), picture(1)]
    how = {"tokenizer": processor, "max_new_tokens": 8, "settings": {"beta": 0.01} if slug in SEES else {}}
    together = decode(slug, loaded, asked, images=seen, **how)
    for prompt, image, text in zip(asked, seen, together):
        assert decode(slug, loaded, prompt, images=[image], **how) == [text]
    if slug in SEES:
        assert together != decode(slug, loaded, asked, images=seen[::-1], **how)            # it looks at them


def test_rows_with_and_without_a_picture_and_an_instruction(reader):
    with_it, without, told = Context("w1 w2", image=picture(0)), Context("w1 w2"), Context("w1 w2", "w9", image=picture(0))
    rows = rows_of(reader, [with_it, without, told], None, 4)
    assert rows["pixel_values"].shape == (2, 3, 8, 8) and (rows["input_ids"] == IMAGE).sum(1).tolist() == [4, 0, 4]
    assert rows["attention_mask"].sum(1).tolist() == [7, 3, 8]
    assert set(rows_of(reader, [without], None, 4)) == {"input_ids", "attention_mask"}
    plain = rows_of(reader, [told], False, 4)["input_ids"][0].tolist()
    assert [reader[1].tokenizer.convert_ids_to_tokens(i) for i in plain] == ["w9", *["<image>"] * 4, "w1", "w2"]


def test_noise_lands_on_its_own_picture(reader):
    clean = [Context("w1", image=picture(i)) for i in range(3)]
    noisy = [clean[0], Context("w1"), Context("w1", image=picture(1), noise=lambda x: noised(x, 500, 7)), clean[2]]
    before, after = (rows_of(reader, c, None, 4)["pixel_values"] for c in (clean, noisy))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    torch.testing.assert_close(after[1:2], noised(before[1:2], 500, 7))
    assert (after[1] - before[1]).abs().mean() > 0.1


def test_equal_pictures_are_encoded_once(reader):
    loaded, processor = reader
    seen: list[int] = []
    handle = loaded.model.vision_tower.embeddings.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    question = "Is w1 there? I am sure that the answer is no."
    decode("lqcd", loaded, question, images=[picture(0)], tokenizer=processor, max_new_tokens=4)
    assert seen == [1]                                                  # two streams, one picture
    x = torch.stack([torch.full((3, 8, 8), v) for v in (1.0, 2.0, 1.0)])
    with each_picture_once(loaded), torch.no_grad():
        once = loaded.model.vision_tower(x, output_hidden_states=True)
    handle.remove()
    with torch.no_grad():
        all_of_them = loaded.model.vision_tower(x, output_hidden_states=True)
    assert seen == [1, 2]
    torch.testing.assert_close(once.hidden_states[-1], all_of_them.hidden_states[-1])
    torch.testing.assert_close(once.pooler_output, all_of_them.pooler_output)


def test_the_key_is_of_seed_words_and_picture():
    keys = {given_with([p], [i], s)[0].key for s in (0, 1) for p in ("w1", "w2") for i in (None, picture(0), picture(1))}
    assert len(keys) == 12 and given_with(["w1"], [picture(0)], 0)[0].key in keys


def test_the_command_takes_a_picture_and_a_file_takes_many(model, tmp_path, capsys):
    picture(0).save(tmp_path / "one.png")
    command = ["decode", "ritual", "--model", str(model), "--max-new-tokens", "5"]
    assert main([*command, "--prompt", "w1 w2", "--image", str(tmp_path / "one.png"), "--transform", "vflip"]) == 0
    said = capsys.readouterr().out
    wanted = decode("ritual", model, "w1 w2", images=[picture(0)], max_new_tokens=5, settings={"transform": "vflip"})[0]
    assert wanted in said and greedy(*load(model), "w1 w2", images=[picture(0)], max_new_tokens=5)[0] in said
    (tmp_path / "bad.png").write_bytes(b"no picture")
    file, out = tmp_path / "asked.jsonl", tmp_path / "out" / "answers.jsonl"
    rows = [{"prompt": "w1 w2", "image": "one.png"}, {"prompt": "w1", "image": "none.png"}, {"prompt": "w1"},
            {"prompt": "w1", "image": "bad.png"}, {"prompt": "w2", "image": 3}]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main([*command, "--file", str(file), "--out", str(out), "--transform", "vflip"]) == 1
    said = capsys.readouterr().out
    for line, what in ((2, "there is no picture"), (3, "without a picture"), (4, "cannot be read as"), (5, "3 as 'image'")):
        assert any(f"line {line}" in part and what in part for part in said.splitlines()), (line, said)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(a["line"], a["ritual"]) for a in answers] == [(1, wanted)]


def test_pictures_that_are_missing_or_cannot_be_seen_are_named(model, tmp_path, capsys):
    with pytest.raises(NotanError, match="without a picture"):
        decode("vcd", tmp_path / "not looked for", "w1")                # said before anything is loaded
    with pytest.raises(NotanError, match="2 pictures for 1 prompts"):
        decode("vcd", model, "w1", images=[picture(0)] * 2)
    with pytest.raises(NotanError, match="LlamaForCausalLM reads no pictures"):
        decode("m3id", saved(tmp_path / "blind"), "w1", images=[picture(0)])
    assert main(["decode", "vcd", "--model", str(model), "--file", str(tmp_path), "--image", "x.png", "--out", "y"]) == 1
    file = tmp_path / "asked.jsonl"
    file.write_text("{}\n")
    assert main(["decode", "vcd", "--model", str(model), "--file", str(file), "--image", "x.png", "--out", "y"]) == 1
    assert "--image was given beside --file" in capsys.readouterr().err
    with pytest.raises(NotanError, match="the model's context"):
        decode("vcd", model, "w1 " * 120, images=[picture(0)], max_new_tokens=8)
