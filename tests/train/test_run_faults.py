"""2,000 published samples with 3 % faults of every kind, from their files through a whole run: told exactly."""

import collections
import dataclasses

import pytest

from tests.nano import export_narrow
from tests.train.data.faults import KINDS, OF_ROWS, plant
from tests.train.tiny import losses, place, rows, tiny
from train.data.readers import READERS
from train.data.store import write_shards
from train.recipe import Data, Rows, Safety
from train.run import open_stage
from train.run import train as run_stage

pytestmark = pytest.mark.slow

SAMPLES = 2000


def test_faults_are_told_exactly(tmp_path, caplog):
    """What lies in files when they are prepared, what lies in samples when they are laid out; each in its turn."""
    planted = plant(tmp_path / "published", SAMPLES, share=0.03)
    assert planted.all.keys() == set(KINDS) and planted.all.total() == 60
    report = write_shards(READERS["llava"](tmp_path / "published" / "data.json"), tmp_path / "set", source="drawn")
    assert report.bad == planted.of_files and report.records == SAMPLES - planted.of_files.total()

    stage = tiny(
        export_narrow(tmp_path / "narrow"),
        rows=Rows(8, tokens=320, tiles=5, bins=8),
        data=Data("set", threads=2),
        safety=Safety(save_every=1000),
        steps=None,
    )
    here = place(tmp_path, data=tmp_path)
    round_ = open_stage(stage, here).steps
    caplog.clear()
    assert run_stage(dataclasses.replace(stage, steps=round(1.1 * round_)), here) == 0
    skipped = [(r.args[0], r.args[1].where.split(" id ")[-1]) for r in caplog.records if r.name == "train.data"]
    first_round = skipped[: planted.of_rows.total()]
    assert sorted(first_round) == sorted((kind, own) for kind in OF_ROWS for own in planted.ids[kind])
    run = tmp_path / "tiny" / "first"
    last = rows(run)[-1]
    counted = collections.Counter({kind: last[f"bad/{kind}"] for kind in OF_ROWS})
    assert planted.of_rows <= counted <= collections.Counter(reason for reason, _ in skipped)
    assert losses(run)[-1] < 0.5 * losses(run)[0] and last["skipped"] == 0
