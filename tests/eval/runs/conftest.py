"""A narrow model of random weights, and runs written by hand."""

import pytest

from eval.runs import records
from eval.runs.records import Record
from tests.nano import export_narrow
from vila_jax.model import from_pretrained


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    return export_narrow(tmp_path_factory.mktemp("runs") / "narrow")


@pytest.fixture(scope="session")
def model(narrow):
    return from_pretrained(str(narrow))


@pytest.fixture
def write_run(tmp_path):
    """Writes the file of a run: `write_run(records, budget="hired:0.2", metric="exact_match")` returns its folder."""

    def write(
        found, *, budget=None, name="scenes", metric="exact_match", variant="vila_jax", expected=None, limit=None
    ):
        header = {
            "schema_version": records.VERSION,
            "model": {"model": "m", "checkpoint_sha256": "c"},
            "task": {
                **{"name": name, "split": "test", "style": "llava", "metric": metric, "variant": variant},
                **{"limit": limit, "n_expected": len(found) if expected is None else expected},
                **{"ids_sha256": "q", "shots": 0, "demonstrations": {"seed": 0, "ids": []}},
            },
            "budget": budget,
            "host": [0, 1],
        }
        folder = tmp_path / name / "0-shot" / (budget or "all").replace(":", "_")
        folder.mkdir(parents=True)
        records.write(folder / "samples.jsonl", header, [{"started": "2020-01-01"}], found)
        return folder

    return write


@pytest.fixture
def answered():
    """A finished record: `answered(3, "yes", "no")` is sample 3, which was answered yes where no is right."""

    def make(index, answer, /, *references, visual=10, cluster=None, **extras):
        return Record(
            index,
            str(index),
            str(index) if cluster is None else cluster,
            key=f"key {index}",
            question=f"question {index}",
            answer=answer,
            references=references,
            extras=extras,
            tokens={"text": 5, "visual": visual, "visual_full": 20, "new": 2},
            finish="stop",
            seconds={"preprocess": 0.001, "prefill": 0.01, "decode": 0.02},
        )

    return make
