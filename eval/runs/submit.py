"""Answers in the forms that the servers of benchmarks take.

    vqav2      JSON, [{"question_id": 1, "answer": "yes"}]          https://eval.ai/web/challenges/challenge-page/830
    docvqa     JSON, [{"questionId": 1, "answer": "1990"}]          https://rrc.cvc.uab.es/?ch=17
    mmbench    XLSX, index, question, A to D, ..., prediction       https://mmbench.opencompass.org.cn
    mmvet      JSON, {"v1_0": "..."}                                https://huggingface.co/spaces/whyu/MM-Vet_Evaluator

A submission must be whole: a failed or missing sample is an error, unless it is asked to be left empty.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eval.metrics.vqa import normalized
from eval.runs.folder import replace
from eval.runs.records import Record
from eval.runs.score import load
from eval.runs.xlsx import write_xlsx
from eval.tasks.files import load_json
from vila_jax.errors import DataError

_LETTERS = "ABCD"
_GROUPS = ("category", "l2-category")


def submit(folder: Path, path: Path, *, gaps: bool = False, questions: Path | None = None) -> int:
    """Writes the answers of a run for the server of its task.

    Args:
      gaps: write an empty answer for a sample that failed.
      questions: of vqav2, the file of all questions of the test split, of which test-dev is a part: the server wants an
        answer to each, and those that were not asked are left empty.

    Returns:
      The number of answers.

    Raises:
      DataError: the task has no server, the run is not whole, or the file's name has another ending.
    """
    run = load(folder)
    task = run.header["task"]
    if task["name"] not in _FORMS:
        fix = f"Tasks with one: {', '.join(_FORMS)}."
        raise DataError(f"{task['name']} has no form of submission", where=str(folder), fix=fix)
    ending, write = _FORMS[task["name"]]
    if path.suffix != ending:
        raise DataError(f"the server takes {ending} files", where=str(path), fix=f"Call it NAME{ending}.")
    failed = [record.id for record in run.records if record.error is not None]
    missing = task["n_expected"] - len(run.records)
    if missing or task["limit"] is not None:
        what = f"{missing} samples are missing" if missing else f"it has the first {task['limit']} samples only"
        raise DataError(what, where=str(folder), fix="Finish the run, without --limit.")
    if failed and not gaps:
        what = f"{len(failed)} samples failed, {failed[0]} among them"
        raise DataError(what, where=str(folder), fix="Run them again, or leave them empty by --gaps.")
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [*run.records, *_not_asked(run.records, questions)]
    write(path, records)
    return len(records)


def _not_asked(records: Sequence[Record], questions: Path | None) -> list[Record]:
    if questions is None:
        return []
    asked = {record.id for record in records}
    ids = [str(row["question_id"]) for row in load_json(questions)["questions"]]
    return [Record(-1, name, "") for name in ids if name not in asked]


def _vqav2(path: Path, records: Sequence[Record]) -> None:
    """The official script compares with raw answers where people agree, so ours are brought to their form."""
    rows = [{"question_id": _number(record.id), "answer": normalized(record.answer or "")} for record in records]
    _json(path, rows)


def _docvqa(path: Path, records: Sequence[Record]) -> None:
    _json(path, [{"questionId": _number(record.id), "answer": (record.answer or "").strip()} for record in records])


def _mmvet(path: Path, records: Sequence[Record]) -> None:
    names = [record.id if record.id.startswith("v1_") else f"v1_{record.id}" for record in records]
    _json(path, {name: record.answer or "" for name, record in zip(names, records, strict=True)})


def _mmbench(path: Path, records: Sequence[Record]) -> None:
    def cells(record: Record) -> list[str | int | None]:
        extras, choices = record.extras, record.extras["choices"]
        options = [choices.get(letter) for letter in _LETTERS]
        groups = [extras.get(name) for name in _GROUPS]
        return [int(extras["index"]), extras.get("question"), *options, *groups, (record.answer or "").strip()]

    write_xlsx(path, ("index", "question", *_LETTERS, *_GROUPS, "prediction"), map(cells, records))


def _json(path: Path, value: object) -> None:
    replace(path, json.dumps(value, ensure_ascii=False))


def _number(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


_FORMS: Mapping[str, tuple[str, Callable[[Path, Sequence[Record]], None]]] = {
    "vqav2": (".json", _vqav2),
    "docvqa": (".json", _docvqa),
    "mmbench": (".xlsx", _mmbench),
    "mmvet": (".json", _mmvet),
}
