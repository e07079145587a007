"""The GPU session as one command: its parts are commands that there are, and it goes on where it stopped."""

import os
import pathlib
import subprocess

import pytest

from vila_jax.cli.main import _parser

SCRIPT = pathlib.Path(__file__).parents[2] / "bench" / "h200.sh"


def run(*words, **environment):
    return subprocess.run(
        [SCRIPT, *map(str, words)], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def parts(**environment):
    lines = run("--list", **environment).stdout.splitlines()
    return dict(line.split(": vila-jax ", 1) for line in lines)


def test_every_part_is_a_command_and_has_a_name_of_its_own():
    assert len(run("--list").stdout.splitlines()) == len(parts()) > 20
    parser, _ = _parser()
    for words in parts().values():
        parser.parse_args([*words.split(), "--json", "a.json", "--markdown", "a.md"])  # exits where it is none
    benches = {words.split()[1] for words in parts().values()}
    assert benches == {"sweep", "hired", "peer", "vision", "prefill", "decode", "compile", "load", "train"}


def test_a_dry_run_is_the_same_of_the_smallest_model():
    parser, _ = _parser()
    real, dry = parts(), parts(DRY_RUN="1")
    assert real.keys() == dry.keys()
    for name, words in dry.items():
        assert words.split()[:2] == real[name].split()[:2]
        args = parser.parse_args(words.split())
        assert (args.model, args.repeats) == ("tiny", 1)


@pytest.fixture
def python(tmp_path):
    """In place of Python: writes the words that it is given into the file that --json names; `load` fails."""
    path = tmp_path / "python"
    path.write_text('#!/bin/bash\n[[ $4 == load ]] && exit 9\necho "$*" > "${*: -3:1}"\n')
    path.chmod(0o755)
    return str(path)


def test_finished_parts_are_skipped_and_failures_do_not_stop_the_others(tmp_path, python):
    out = tmp_path / "results"
    first = run(out, "compile", "load", "train-7b", PYTHON=python)
    assert first.returncode == 1 and "failed: load" in first.stdout
    assert {path.name for path in out.glob("*.json")} == {"compile.json", "train-7b-lora.json", "train-7b-full.json"}
    assert "bench compile llava-1.5-7b --repeats 3 --json" in (out / "compile.json").read_text()
    again = run(out, "compile", PYTHON=python)
    assert again.returncode == 0 and "compile: done before" in again.stdout
