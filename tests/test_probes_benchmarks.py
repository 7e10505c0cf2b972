"""Files of benchmarks in small: what is read of them, and that nothing broken passes."""

from __future__ import annotations

import csv
import json

import pytest

from notan.errors import NotanError
from notan.probes import benchmarks
from notan.probes.benchmarks import Choice, Invented, YesNo

TRUTH = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
FACTOR = ["", "full_prefix", "doc_id", "completion", "contradiction_0", "contradiction_1", "contradiction_2",
          "longest_completions", "turncated_prefixes"]


def table(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_truthfulqa(tmp_path):
    file = table(tmp_path / "t.csv", TRUTH,
                 ["A", "B", " Do owls, at night,\nsee? ", "They do", "Yes; They do.;; Owls see at night", "No; Never.", "x"],
                 ["A", "B", "Who?", "Nobody", "No one", "Everybody", "x"])
    seen, added = benchmarks.truthfulqa(file)
    true = (" Yes.", " They do.", " Owls see at night.")
    assert seen == Choice("Q: Do owls, at night,\nsee?\nA:", true, (" No.", " Never."), best=1)
    assert added == Choice("Q: Who?\nA:", (" Nobody.", " No one."), (" Everybody.",), 0)
    assert benchmarks.truthfulqa(file, "Q: One?\nA: Two.\n")[1].prompt == "Q: One?\nA: Two.\n\nQ: Who?\nA:"


def test_factor_puts_the_space_where_the_official_script_does(tmp_path):
    file = table(tmp_path / "f.csv", FACTOR,
                 ["0", "Long ago. He ran. ", "7", "He fell.", " He flew.", "He sat.", "He ate.", "9.0", "He ran. "],
                 ["1", "A list:\n", "7", "One.", "Two.", "Six.", "Ten.", "9.0", "A list:\n"])
    spaced, line = benchmarks.factor(file)
    assert spaced == Choice("He ran.", (" He fell.",), (" He flew.", " He sat.", " He ate."))
    assert line == Choice("A list:\n", ("One.",), ("Two.", "Six.", "Ten."))
    assert benchmarks.factor(file, "full_prefix")[0].prompt == "Long ago. He ran."


def test_pope_as_lines_and_as_an_array(tmp_path):
    rows = [{"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
            {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "No"}]
    wanted = [YesNo("a.jpg", rows[0]["text"], True), YesNo("a.jpg", rows[1]["text"], False)]
    assert benchmarks.pope(lines(tmp_path / "l.json", *rows)) == wanted
    (tmp_path / "a.json").write_text("\n" + json.dumps(rows, indent=4))
    assert benchmarks.pope(tmp_path / "a.json") == wanted


def test_leading_questions_and_halueval(tmp_path):
    row = {"image": "a.png", "query": "Is it red?", "leading": "It is red, is it not?", "answer": "no"}
    found = benchmarks.leading(lines(tmp_path / "l.jsonl", row, row | {"image": None}))
    assert found == [YesNo("a.png", "Is it red?", False, "It is red, is it not?"), YesNo("", "Is it red?", False, row["leading"])]
    row = {"knowledge": "K", "question": "Q?", "right_answer": "R", "hallucinated_answer": "H"}
    assert benchmarks.halueval(lines(tmp_path / "h.json", row)) == [Invented("K", "Q?", "R", "H")]


def test_mme_in_its_three_forms_says_the_same(tmp_path):
    asked = [("Is it a dog?", "Yes"), ("Is it a cat?", "No")]
    beside, apart, tables = tmp_path / "one" / "count", tmp_path / "two" / "count", tmp_path / "three"
    for folder in (beside, apart / "images", apart / "questions_answers_YN", tables):
        folder.mkdir(parents=True)
    for picture, text in ((beside, beside), (apart / "images", apart / "questions_answers_YN")):
        (picture / "1.png").write_bytes(b"")
        (text / "1.txt").write_text("".join(f"{q}\t{a}\n" for q, a in asked) + "\n")
    (tables / "count.txt").write_text("".join(f"1.png\t{q}\t{a}\tyes\n" for q, a in asked))
    for path, image in ((tmp_path / "one", beside / "1.png"), (tmp_path / "two", apart / "images" / "1.png"), (tables, "1.png")):
        assert benchmarks.mme(path) == [YesNo(str(image), q, a == "Yes", task="count") for q, a in asked]
    assert benchmarks.mme(tables / "count.txt") == benchmarks.mme(tables)
    (beside / "2.txt").write_text("Is it?\tYes\n")
    with pytest.raises(NotanError, match="has no picture"):
        benchmarks.mme(tmp_path / "one")


GOOD = '{"image": "a", "text": "b?", "label": "yes"}\n'


@pytest.mark.parametrize(("text", "seen"), [
    (GOOD + "{not json\n", "line 2 is no JSON"),
    (GOOD + "\n[1]\n", "line 3 holds list"), ("", "is empty"), ("[]", "an empty array"),
    (GOOD + '{"image": "a", "text": "b?"}\n', "line 2 has only 'image', 'text' and no 'label'"),
    (GOOD + GOOD.replace('"b?"', "5"), "line 2 has 5 as 'text'"), (GOOD.replace("b?", " "), "line 1 has"),
    (GOOD.replace("yes", "maybe"), "line 1 has the answer 'maybe'"), ("[" + GOOD + "{}]", "no JSON"),
    ("[" + GOOD + ", 3]", "item 2 holds int"), (GOOD.replace('"a"', "null"), "null as 'image'"),
])
def test_a_broken_line_of_json_is_named(tmp_path, text, seen):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(NotanError, match=seen):
        benchmarks.pope(tmp_path / "p.json")


@pytest.mark.parametrize(("rows", "seen"), [
    ([["A", "B", "Q?", "Best", "True", "False", "x"], ["A", "B", "Q?"]], r"row 2 \(to line 3\) has not as many cells"),
    ([["A", "B", "Q?", "Best", "True", "False", "x", "y"]], "row 1 .* not as many cells"),
    ([["A", "B", "Q?", "Best", "True", "", "x"]], "nothing as 'Incorrect Answers'"),
    ([["A", "B", "Q?", "Best", " ; ", "False", "x"]], "1 best, 0 correct and 1 incorrect"), ([], "has no rows"),
])
def test_a_broken_row_of_a_table_is_named(tmp_path, rows, seen):
    with pytest.raises(NotanError, match=seen):
        benchmarks.truthfulqa(table(tmp_path / "t.csv", TRUTH, *rows))


def test_files_that_are_missing_or_others(tmp_path):
    with pytest.raises(NotanError, match="there is no file"):
        benchmarks.pope(tmp_path / "p.json")
    with pytest.raises(NotanError, match="has no column 'turncated_prefixes', only 'Type'"):
        benchmarks.factor(table(tmp_path / "t.csv", TRUTH, ["A", "B", "Q?", "Best", "True", "False", "x"]))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NotanError, match="UTF-8"):
        benchmarks.factor(tmp_path / "b.csv")
    (tmp_path / "q.csv").write_text(",".join(TRUTH) + '\nA,B,"Q?,x\n')
    with pytest.raises(NotanError, match="no csv"):
        benchmarks.truthfulqa(tmp_path / "q.csv")
    (tmp_path / "m.txt").write_text("1.png\tIs it?\n2\t3\t4\t5\t6\n")
    with pytest.raises(NotanError, match="has no picture"):
        benchmarks.mme(tmp_path / "m.txt")
    (tmp_path / "m.txt").write_text("1.png\tIs it?\tYes\nIs it? Yes\n")
    with pytest.raises(NotanError, match="line 2 has 1 cells"):
        benchmarks.mme(tmp_path / "m.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotanError, match="no text files"):
        benchmarks.mme(tmp_path / "empty")
