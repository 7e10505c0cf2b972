"""ICD's amateur: only answers are learned, where they stand, and what `notan decode icd` then takes."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from notan import decode, train
from notan.errors import NotanError
from notan.methods._example import texts, tiny_language_model
from notan.methods._progress import Progress
from notan.methods.icd import ICD, example
from notan.nets.language import build_language
from notan.nets.lora import merged

START = Progress()
CHAT = ("{% for m in messages %}[{{ m.role }}] {{ m.content }} [done] {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}")


def method(**settings) -> ICD:
    torch.manual_seed(0)
    return ICD(tiny_language_model(), **settings).double()


def test_the_loss_is_of_the_answers_tokens_and_their_ends():
    """Row by row with `transformers`' own forward pass; questions and padding do not count."""
    icd, batch = method(), example(4, torch.float64)[1]
    words, total, count = icd.model.tokenizer, 0.0, 0
    for query, answer in zip(batch["query"], batch["answer"]):
        before, after = words(query)["input_ids"], [*words(" " + answer)["input_ids"], words.eos_token_id]
        with torch.no_grad():
            z = icd.model.model(torch.tensor([before + after])).logits[0]
        total += float(F.cross_entropy(z[len(before) - 1 : -1], torch.tensor(after), reduction="sum"))
        count += len(after)
    assert float(icd.loss(batch, START)["loss"].detach()) == pytest.approx(total / count, rel=1e-9)


def test_where_the_answer_stands():
    icd = method(length=12)
    words = icd.model.tokenizer
    ids, answer = icd.rows(["the cat ", "the cat", "the cat saw a dog that ran to some old house", ""], ["ran"] * 4)
    said = [words.decode(row[mask]) for row, mask in zip(ids, answer)]
    assert said == ["ran<|endoftext|>", " ran<|endoftext|>", " ran<|endoftext|>", " ran<|endoftext|>"]
    assert words.decode(ids[2][~answer[2]]).endswith("house") and ids.shape[1] == 12    # the question's beginning is cut off
    ids, answer = icd.rows(["the cat"], ["saw a dog that ran to some old house by the sea and hid"])
    assert ids.shape == (1, 12) and int((~answer).sum()) == 1                           # and the answer's end


def test_questions_go_through_the_chat_template():
    icd = method(length=200)
    icd.model.context, icd.model.tokenizer.chat_template = 200, CHAT
    ids, answer = icd.rows(["who?"], ["me"])
    assert icd.model.tokenizer.decode(ids[0]) == "[user] who? [done] [assistant]me<|endoftext|>"
    assert icd.model.tokenizer.decode(ids[0][answer[0]]) == "me<|endoftext|>"


def test_with_lora_the_model_stays_and_the_sum_learns():
    icd, batch = method(lora=2), example(4, torch.float64)[1]
    before = {n: p.clone() for n, p in icd.named_parameters()}
    optimiser = torch.optim.AdamW([p for p in icd.parameters() if p.requires_grad], lr=3e-2)
    first = icd.loss(batch, START)["loss"].detach()
    for _ in range(60):
        optimiser.zero_grad()
        icd.loss(batch, START)["loss"].backward()
        optimiser.step()
    assert icd.loss(batch, START)["loss"] < first - 0.3                 # frozen small embeddings bound what can be reached
    for name, p in icd.named_parameters():
        assert torch.equal(p, before[name]) is not name.endswith((".A", ".B")), name


@pytest.mark.parametrize("lora", [0, 8])
def test_a_run_is_an_amateur(lora, tmp_path):
    """Questions with invented answers as a file; the run's folder is what `notan decode icd --amateur` takes."""
    names = ["ana", "bo", "cy", "di"] * 12
    lines = [{"question": f"who is {n} {i}?", "hallucinated_answer": "a tree"} for i, n in enumerate(names)]
    (tmp_path / "halu.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tiny_language_model().model.save_pretrained(tmp_path / "base")
    tiny_language_model().tokenizer.save_pretrained(tmp_path / "base")
    run = train("icd", str(tmp_path / "halu.jsonl"), out=tmp_path / "run", steps=120, batch=8, threads=1, lr=2e-2,
                encoder=f"hf:{tmp_path / 'base'}", settings={"lora": lora, "length": 32},
                data_options={"columns": {"question": "query", "hallucinated_answer": "answer"}})
    saved = build_language(f"hf:{run.path}").eval()
    state = merged(run.method().model.model)
    for name, weight in saved.model.state_dict().items():
        torch.testing.assert_close(weight, state[name])
    said = decode("contrastive_search", run.path, "who is ana 4?", settings={"alpha": 0.0}, max_new_tokens=8)
    assert said[0].strip() == "a tree"
    against = decode("icd", tmp_path / "base", ["who is bo 9?"], amateur=run.path, max_new_tokens=4)
    assert isinstance(against[0], str) and against[0].strip() != "a tree"
    assert [r["accuracy"] for r in run.metrics() if "accuracy" in r][-1] > 0.9


def test_one_token_is_refused():
    with pytest.raises(NotanError, match="length = 1"):
        method(length=1)


def test_features_are_of_the_questions():
    icd, batch = method(), example(4, torch.float64)[1]
    torch.testing.assert_close(icd.encode(batch), icd.model.features(texts(4)["text"]))
