"""Files for servers, read back as the servers read them."""

import json
import xml.etree.ElementTree
import zipfile

import pytest

from eval.runs.records import Record
from eval.runs.submit import submit
from eval.runs.xlsx import write_xlsx
from vila_jax.errors import DataError

MAIN = {"m": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}


def cells(path):
    """The sheet as rows of {column: value}."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            xml.etree.ElementTree.fromstring(archive.read(name))
        sheet = xml.etree.ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    rows = []
    for row in sheet.iterfind(".//m:row", MAIN):
        found = {}
        for cell in row.iterfind("m:c", MAIN):
            text = cell.find("m:is/m:t", MAIN)
            found[cell.get("r")] = int(cell.find("m:v", MAIN).text) if text is None else text.text
        rows.append(found)
    return rows


def test_a_workbook_keeps_texts_and_numbers(tmp_path):
    path = tmp_path / "a.xlsx"
    write_xlsx(path, ["x"] * 28, [['<&" ü \x07\n', 7, None, *["y"] * 25]])
    first, second = cells(path)
    assert list(first)[-3:] == ["Z1", "AA1", "AB1"]
    assert second["A2"] == '<&" ü \n' and second["B2"] == 7 and "C2" not in second and second["AB2"] == "y"


def test_mmbench(write_run, answered, tmp_path):
    extras = {"choices": {"A": "a cat", "B": "a dog"}, "question": "What?", "category": "c", "l2-category": "l"}
    found = [answered(0, " B\n", index=1000005, **extras)]
    path = tmp_path / "mmbench.xlsx"
    assert submit(write_run(found, name="mmbench", metric="mmbench", variant="vlmevalkit"), path) == 1
    head, row = (list(own.values()) for own in cells(path))
    assert head == ["index", "question", "A", "B", "C", "D", "category", "l2-category", "prediction"]
    assert row == [1000005, "What?", "a cat", "a dog", "c", "l", "B"]


def test_vqav2_with_all_questions_of_the_split(write_run, answered, tmp_path):
    folder = write_run([answered(7, "The Cat.", "x")], name="vqav2", metric="vqa_accuracy", variant="lmms_eval")
    questions, path = tmp_path / "questions.json", tmp_path / "out" / "vqav2.json"
    questions.write_text(json.dumps({"questions": [{"question_id": 7}, {"question_id": 8}]}))
    assert submit(folder, path, questions=questions) == 2
    assert json.loads(path.read_text()) == [{"question_id": 7, "answer": "cat"}, {"question_id": 8, "answer": ""}]


def test_docvqa_and_mmvet(write_run, answered, tmp_path):
    path = tmp_path / "answers.json"
    submit(write_run([answered(3, " 1990 ")], name="docvqa", metric="anls", variant="lmms_eval"), path)
    assert json.loads(path.read_text()) == [{"questionId": 3, "answer": "1990"}]
    submit(
        write_run(
            [answered(3, "A red\ncar", "car", capability=["rec"])], name="mmvet", metric="mmvet", variant="lmms_eval"
        ),
        path,
    )
    assert json.loads(path.read_text()) == {"v1_3": "A red\ncar"}


def test_what_is_not_whole_is_not_submitted(write_run, answered, tmp_path):
    failed = Record(1, "1", "1", error={"kind": "ImageError", "message": "damaged"})
    folder = write_run([answered(0, "a"), failed], name="docvqa", metric="anls", variant="lmms_eval")
    with pytest.raises(DataError, match="1 samples failed"):
        submit(folder, tmp_path / "a.json")
    assert submit(folder, tmp_path / "a.json", gaps=True) == 2
    with pytest.raises(DataError, match=r"takes \.json files"):
        submit(folder, tmp_path / "a.xlsx")
    short = write_run(
        [answered(0, "a")], name="docvqa", metric="anls", variant="lmms_eval", budget="hired:0.2", expected=2
    )
    with pytest.raises(DataError, match="1 samples are missing"):
        submit(short, tmp_path / "a.json")
    part = write_run([answered(0, "a")], name="docvqa", metric="anls", variant="lmms_eval", budget="hired:0.1", limit=1)
    with pytest.raises(DataError, match="first 1 samples only"):
        submit(part, tmp_path / "a.json")
    with pytest.raises(DataError, match="no form of submission"):
        submit(write_run([answered(0, "a", "a")]), tmp_path / "a.json")
