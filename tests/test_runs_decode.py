"""`notan decode`, end to end on a tiny model in a folder: text beside greedy, a file of prompts, and bad input."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from notan.cli import main
from notan.errors import NotanError
from notan.runs.decode import decode, greedy
from notan.runs.reader import load

WORDS = ["<s>", "</s>", "<pad>", *(f"w{i}" for i in range(58))]


def saved(folder, *, seed=0, words=WORDS, family="llama"):
    words = {w: i for i, w in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    tiny(family, seed=seed, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "large")


@pytest.fixture(scope="module")
def amateur(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "small", seed=1)


def test_a_batch_is_its_prompts_one_by_one_with_each_model_given_as_it_comes(model, amateur):
    prompts = ["w1 w2 w3", "w9 w4 w5 w6 w7 w8"]
    together = decode("contrastive_decoding", model, prompts, amateur=amateur, max_new_tokens=9)
    loaded, tokenizer = load(model)
    small, _ = load(amateur)
    for prompt, text in zip(prompts, together):
        assert decode("contrastive_decoding", loaded, prompt, tokenizer=tokenizer, amateur=small, max_new_tokens=9) == [text]
    assert all(greedy(loaded, tokenizer, p, max_new_tokens=9) != [t] for p, t in zip(prompts, together))


def test_an_instruction_makes_the_second_row_and_an_amateur_takes_its_place(model, amateur):
    own = decode("icd", model, "w1 w2", max_new_tokens=9, settings={"instruction": "w50 w51 w52"})
    assert own != decode("icd", model, "w1 w2", max_new_tokens=9, settings={"instruction": "w7"})
    assert own != decode("icd", model, "w1 w2", max_new_tokens=9, amateur=amateur)


def test_sampling_is_a_function_of_the_seed_and_leaves_the_generator_alone(model):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    texts = [decode("icd", model, "w1 w2", sample=True, temperature=3.0, seed=s, max_new_tokens=9, settings={"beta": 0.001})
             for s in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2] and torch.equal(before, torch.random.get_rng_state())


def test_the_command_shows_the_text_beside_greedy(model, capsys):
    assert main(["decode", "contrastive_search", "--model", str(model), "--prompt", "w1 w2 w3", "--max-new-tokens", "8",
                 "--alpha", "0.4"]) == 0
    said = capsys.readouterr().out
    loaded, tokenizer = load(model)
    assert "contrastive_search" in said and greedy(loaded, tokenizer, "w1 w2 w3", max_new_tokens=8)[0] in said
    assert decode("contrastive_search", model, "w1 w2 w3", max_new_tokens=8, settings={"alpha": 0.4})[0] in said
    assert main(["decode", "list"]) == 0 and "contrastive_search" in capsys.readouterr().out


def test_a_file_goes_on_where_it_stopped_and_names_the_lines_it_cannot_read(model, tmp_path, capsys):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "w1 w2"}\nnot json\n{"prompt": "w5"}\n{"question": "w5"}\n{"prompt": " "}\n')
    command = ["decode", "icd", "--model", str(model), "--file", str(file), "--out", str(out), "--max-new-tokens", "5"]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert all(f"line {n}" in said for n in (2, 4, 5)) and "3 lines could not be read" in said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["line"] for r in rows] == [1, 3] and rows[0].keys() == {"line", "prompt", "icd", "greedy"}
    out.write_text(out.read_text().splitlines()[0] + "\n" + '{"line": 3, "pro')                   # killed while writing
    assert main(command) == 1
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


@pytest.mark.parametrize(("options", "message"), [
    ({"strategy": "contrastive_serch"}, "did you mean 'contrastive_search'"),
    ({"strategy": "contrastive_decoding"}, "amateur.*none was given"),
    ({"settings": {"gamma": 1}}, "icd has no setting 'gamma'"),
    ({"prompts": "  "}, "a prompt is empty"),
    ({"prompts": "w1 " * 200}, "a prompt of 200 tokens and 8 new ones.*at most 128"),
    ({"model": "/no/such/folder"}, "no language model"),
    ({"settings": {"beta": 2.0}}, r"beta = 2.0.*from 0 to 1"),
    ({"settings": {"c": float("nan")}}, r"c = nan"),
    ({"strategy": "contrastive_search", "settings": {"k": 0}}, r"k = 0.*k of at least 1"),
    ({"max_new_tokens": 0}, "max_new_tokens = 0"),
    ({"sample": True, "temperature": 0.0}, "temperature = 0.0"),
])
def test_bad_input_is_explained(model, options, message):
    given = {"strategy": "icd", "model": model, "prompts": "w1", "max_new_tokens": 8, **options}
    with pytest.raises(NotanError, match=message):
        decode(given.pop("strategy"), given.pop("model"), given.pop("prompts"), **given)


def test_a_file_that_is_not_there_and_answers_of_another_strategy_are_refused(model, tmp_path, capsys):
    command = ["decode", "icd", "--model", str(model), "--file", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o.jsonl")]
    assert main(command) == 1 and "there is no file" in capsys.readouterr().err
    (tmp_path / "none.jsonl").write_text('{"prompt": "w1"}\n')
    (tmp_path / "o.jsonl").write_text('{"line": 1, "prompt": "w1", "dola": "w2", "greedy": "w3"}\n')
    assert main(command) == 1 and "holds other lines than answers of icd" in capsys.readouterr().err


def test_a_missing_amateur_is_noticed_before_a_model_is_read():
    with pytest.raises(NotanError, match="amateur, and none was given"):
        decode("contrastive_decoding", "/no/such/folder", "w1")


@pytest.mark.parametrize("broken", ["empty folder", "weights"])
def test_a_broken_model_is_named(model, tmp_path, broken):
    if broken == "weights":
        for file in model.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes()[:100] if file.suffix == ".safetensors" else file.read_bytes())
    with pytest.raises(NotanError, match="no language model that can be read"):
        decode("icd", tmp_path, "w1")


def test_an_amateur_of_another_vocabulary_is_refused(model, tmp_path):
    other = saved(tmp_path / "other", words=[*WORDS[:-1], "else"])
    with pytest.raises(NotanError, match=r"vocabulary of 61 tokens is not the model's.*'else'"):
        decode("contrastive_decoding", model, "w1", amateur=other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_compiled_steps_need_a_gpu(model):
    with pytest.raises(NotanError, match="without a GPU"):
        decode("icd", model, "w1", compile=True)


def test_an_adapter_is_an_amateur_on_its_base(model, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    loaded, tokenizer = load(model)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    lora = peft.get_peft_model(load(model)[0], config)
    lora.save_pretrained(tmp_path / "adapter")
    wanted = decode("icd", loaded, "w1 w2", tokenizer=tokenizer, amateur=lora, max_new_tokens=9)
    assert decode("icd", model, "w1 w2", amateur=tmp_path / "adapter", max_new_tokens=9) == wanted
    assert decode("icd", model, "w1 w2", amateur=model, max_new_tokens=9) != wanted
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotanError, match=r"peft is not installed.*notan\[lora\]"):
        load(tmp_path / "adapter")
