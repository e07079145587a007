"""Two results beside each other: ratios, spreads, and what cannot be compared."""

import dataclasses
import json

import pytest

from vila_jax.bench.compare import compare
from vila_jax.bench.results import Results, Row, read_results
from vila_jax.bench.timing import Times
from vila_jax.cli.main import main
from vila_jax.errors import VilaError

SETTINGS = {"command": "vila-jax bench decode", "device": "cpu", "machine": "a", "versions": {"jax": "1"}}


def row(median, batch=1, spread=0.1):
    times = {"step": Times(median, median * (1 - spread), median * (1 + spread), 20)}
    return Row("decode", {"model": "tiny", "batch": batch, "budget": None}, times)


def test_ratios_count_where_spreads_do_not_meet():
    old = Results(SETTINGS, [row(1.0), row(1.0, batch=2), row(1.0, batch=4), row(1.0, batch=8)])
    new = Results(SETTINGS, [row(0.5, batch=4), row(1.5, batch=2), row(1.15), row(1.0, batch=16)])
    found = compare(old, new)
    assert [(change.ratio, change.verdict) for change in found.changes] == [
        (0.5, "faster"),
        (1.5, "slower"),
        (1.15, "same"),
    ]
    assert found.missing == [f"decode, model tiny, batch {batch}, budget full" for batch in (16, 8)]
    assert found.differing == []


def test_rows_of_other_machines_are_compared_with_a_warning():
    other = Results(SETTINGS | {"machine": "b", "versions": {"jax": "2"}}, [row(1.0)])
    assert compare(Results(SETTINGS, [row(1.0)]), other).differing == ["machine", "versions"]


def test_nothing_in_common():
    refused = dataclasses.replace(row(1.0, batch=2), refused="out of memory")
    with pytest.raises(VilaError, match="no row in common"):
        compare(Results(SETTINGS, [row(1.0), refused]), Results(SETTINGS, [row(1.0, batch=2)]))


def test_results_survive_their_file(tmp_path):
    results = Results(SETTINGS, [row(1.0), Row("decode", {"batch": 2}, refused="out of memory")])
    results.write(tmp_path / "a.json")
    assert read_results(tmp_path / "a.json") == results


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "other"}', '{"format": "vila-jax bench", "rows": [1]}'])
def test_other_files_are_refused(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(VilaError, match="no result of a bench"):
        read_results(file)


def test_command(tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("old.json", "new.json")]
    for file, median in zip(files, (1.0, 0.5), strict=True):
        Results(SETTINGS, [row(median)]).write(tmp_path / file)
    assert main(["bench", "compare", *files]) == 0
    said = capsys.readouterr().out
    assert "0.500" in said and "faster" in said
    assert main(["bench", "compare", *files, "--json"]) == 0
    [change] = json.loads(capsys.readouterr().out)["changes"]
    assert (change["ratio"], change["verdict"]) == (0.5, "faster")
