"""`python -m eval run` and what follows it, as a user types it."""

import dataclasses
import html
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from PIL import Image

from eval.__main__ import main
from eval.runs.records import read
from vila_jax.errors import DataError

ROOT = pathlib.Path(__file__).parents[3]
COUNT = 10


def arguments(narrow, out, *more):
    common = ["run", "--model", narrow, "--tasks", "scenes", "--limit", COUNT, "--batch", 4, "--draw", 1, "--out", out]
    return [str(word) for word in (*common, *more)]


def records(folder):
    """What was answered, without the time it took."""
    contents = read(folder / "samples.jsonl")
    return {index: dataclasses.replace(own, seconds={}) for index, own in sorted(contents.records.items())}


@pytest.fixture(scope="module")
def whole(narrow, tmp_path_factory):
    """A run at two budgets that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert main(arguments(narrow, out, "--budget", "all", "hired:0.2")) == 0
    return out


def test_a_run_leaves_its_answers_its_numbers_and_a_report(whole):
    folders = [whole / "scenes" / "0-shot" / name for name in ("all", "hired_0.2")]
    for folder, budget in zip(folders, (None, "hired:0.2"), strict=True):
        result = json.loads((folder / "result.json").read_text())
        header = result["header"]
        assert result["n"] == {"expected": COUNT, "done": COUNT, "failed": 0, "missing": 0}
        assert header["budget"] == budget and header["generation"]["max_new_tokens"] == 4
        assert header["model"]["dtype"] == "float32" and len(header["model"]["checkpoint_sha256"]) == 64
        assert "QUESTION" in header["model"]["prompt_template"]
        assert header["task"]["n_expected"] == COUNT and result["metric"]["n"] == COUNT
        [session] = result["sessions"]
        assert {"started", "ended", "command", "commit", "dirty", "versions", "machine", "devices"} <= set(session)
        lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        assert [line["index"] for line in lines] == list(range(COUNT))
    tokens = [json.loads((folder / "result.json").read_text())["tokens"]["visual"]["max"] for folder in folders]
    assert tokens[1] < tokens[0]


def test_the_report_holds_tables_charts_and_wrong_answers(whole):
    page = (whole / "report.html").read_text()
    notes = json.loads((whole / "scenes" / "0-shot" / "hired_0.2" / "failures" / "failures.json").read_text())
    assert len(notes) == 1 and notes[0]["question"] in page
    assert page.count("data:image/png;base64,") == 3  # the chart, and one wrong answer of each run
    assert "<td>hired:0.2</td>" in page and "exact_match" in page and 'src="http' not in page
    Image.open(whole / "accuracy_scenes_test_0-shot.png").verify()
    assert main(["report", str(whole)]) == 0 and (whole / "report.html").read_text() == page


def test_scoring_again_needs_no_model(whole, monkeypatch, capsys):
    monkeypatch.setattr(jax, "jit", None)
    before = (whole / "scenes" / "0-shot" / "all" / "result.json").read_text()
    (whole / "scenes" / "0-shot" / "all" / "result.json").unlink()
    assert main(["score", str(whole)]) == 0
    assert (whole / "scenes" / "0-shot" / "all" / "result.json").read_text() == before
    assert main(["compare", *[str(whole / "scenes" / "0-shot" / name) for name in ("all", "hired_0.2")]]) == 0
    assert "scenes test, 0-shot" in capsys.readouterr().out


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(whole, narrow, tmp_path):
    words = arguments(narrow, tmp_path, "--budget", "hired:0.2")
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"]}
    command = [sys.executable, "-m", "tests.eval.runs.killed", "5", *words]
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "scenes" / "0-shot" / "hired_0.2"
    path = folder / "samples.jsonl"
    assert not path.read_bytes().endswith(b"\n") and len(records(folder)) == 5
    assert main(words) == 0
    assert records(folder) == records(whole / "scenes" / "0-shot" / "hired_0.2")
    kinds = [next(iter(json.loads(line))) for line in path.read_text().splitlines()]
    assert kinds.count("sample") == COUNT and kinds.count("session") == 2 and kinds.count("header") == 1
    assert ["ended" in session for session in read(path).sessions] == [False, True]


def test_shares_of_hosts_merged_are_the_whole(whole, narrow, tmp_path, capsys):
    budget = ("--budget", "hired:0.2")
    folder = tmp_path / "scenes" / "0-shot" / "hired_0.2"
    assert main(arguments(narrow, tmp_path, "--host", "0/2", *budget)) == 0
    assert main(["merge", str(tmp_path)]) == DataError.exit_code
    assert "samples-1-of-2.jsonl is missing" in " ".join(capsys.readouterr().err.split())
    assert main(["score", str(tmp_path)]) == DataError.exit_code
    assert main(arguments(narrow, tmp_path, "--host", "1/2", *budget)) == 0
    assert [sorted(read(folder / f"samples-{i}-of-2.jsonl").records) for i in (0, 1)] == [
        [0, 2, 4, 6, 8],
        [1, 3, 5, 7, 9],
    ]
    assert main(["merge", str(tmp_path)]) == 0
    assert records(folder) == records(whole / "scenes" / "0-shot" / "hired_0.2")
    assert json.loads((folder / "result.json").read_text())["n"]["done"] == COUNT

    share = folder / "samples-1-of-2.jsonl"
    lines = share.read_text().splitlines()
    share.write_text("\n".join([*lines[:3], *lines[4:], ""]))
    capsys.readouterr()
    assert main(["merge", str(tmp_path)]) == DataError.exit_code
    assert "1 of 10 samples are missing" in " ".join(capsys.readouterr().err.split())
    other = next(line for line in (folder / "samples-0-of-2.jsonl").read_text().splitlines() if '"sample"' in line)
    share.write_text("\n".join([*lines, other, ""]))
    assert main(["merge", str(tmp_path)]) == DataError.exit_code
    assert "1 samples stand in two files" in " ".join(capsys.readouterr().err.split())


def test_other_questions_are_not_mixed_in(whole, narrow, capsys):
    assert main([*arguments(narrow, whole), "--limit", "9"]) == DataError.exit_code
    assert "task.limit was 10 and is 9" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_asked_fails_the_command_and_nothing_else(narrow, tmp_path, capsys):
    """A line that is no JSON, a picture that is missing, and one that is damaged."""
    data, out = tmp_path / "vqav2", tmp_path / "out"
    data.mkdir()
    rows = [
        {"question_id": i, "question": "Is it red?", "answers": ["yes"] * 10, "image": f"{i}.png"} for i in range(5)
    ]
    lines = [json.dumps(row) for row in rows]
    lines[1] = lines[1][:30]
    (data / "validation.jsonl").write_text("\n".join(lines))
    for i in (0, 4):
        Image.new("RGB", (96, 96), (200, 0, 0)).save(data / f"{i}.png")
    (data / "3.png").write_bytes((data / "0.png").read_bytes()[:40])
    words = ["run", "--model", narrow, "--tasks", "vqav2", "--data", tmp_path, "--out", out, "--max-new-tokens", 4]
    words = [str(word) for word in (*words, "--batch", 4, "--draw", 0)]
    assert main(words) == 12
    assert "3 of 5 samples failed" in " ".join(capsys.readouterr().err.split())
    result = json.loads((out / "vqav2" / "0-shot" / "all" / "result.json").read_text())
    assert result["n"] == {"expected": 5, "done": 2, "failed": 3, "missing": 0} and result["metric"]["n"] == 5
    messages = {failure["id"]: failure["message"] for failure in result["failures"]}
    assert list(messages) == ["validation.jsonl line 2", "2", "3"]
    assert "no JSON" in messages["validation.jsonl line 2"] and "2.png" in messages["2"]
    page = (out / "report.html").read_text()
    assert all(html.escape(message) in page for message in messages.values())
    assert main(["score", str(out)]) == 1

    for i in (2, 3):  # what failed is asked again
        Image.new("RGB", (96, 96)).save(data / f"{i}.png")
    assert main(words) == 12
    result = json.loads((out / "vqav2" / "0-shot" / "all" / "result.json").read_text())
    assert result["n"]["done"] == 4 and [failure["id"] for failure in result["failures"]] == ["validation.jsonl line 2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "scense"], "Did you mean scenes?"),
        (["--tasks", "flickr8k_retrieval"], "asks for scores of pairs"),
        (["--tasks", "scenes", "--budget", "hirde:0.2"], "hirde"),
        (["--tasks", "gqa", "--data", "nowhere"], "testdev_balanced_questions.json"),
        (["--tasks", "gqa", "--include", "dev/*"], "Write --data hub:OWNER/NAME."),
        (["--tasks", "gqa", "--data", "hub:nobody/nothing"], "the Hub cannot be reached"),
    ],
)
def test_what_cannot_be_run_is_said_before_the_model_is_loaded(narrow, words, said, capsys, monkeypatch):
    monkeypatch.setattr("eval.commands.run.from_pretrained", None)
    assert main(["run", "--model", str(narrow), *words]) > 0
    assert said in " ".join(capsys.readouterr().err.split())
