"""`python -m eval`: one command at a time is loaded, with the packages that it needs."""

import os
import subprocess
import sys

import pytest

from eval.__main__ import COMMANDS, main

WITHOUT_TRAINING = ("run", "score", "merge", "compare", "report", "judge", "submit", "nano")
BARE = """
import sys

sys.modules |= dict.fromkeys(("grain", "av", "torch", "transformers", "skimage", "hypothesis"))
from eval.__main__ import main

for command in sys.argv[1:]:
    try:
        main([command, "--help"])
    except SystemExit as stop:
        assert stop.code == 0, command
sys.exit(main(["study", "vila_findings"]))
"""


def test_runs_need_no_package_of_training_and_what_does_says_so():
    done = subprocess.run(
        [sys.executable, "-c", BARE, *WITHOUT_TRAINING],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert all(f"python -m eval {name} [-h]" in done.stdout for name in WITHOUT_TRAINING)
    assert "is not installed" in done.stderr and ".[train]" in done.stderr


def test_the_help_lists_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {summary}" in said for name, (_, summary) in COMMANDS.items())
    with pytest.raises(SystemExit, match="2"):
        main(["rnu"])
    assert "invalid choice: 'rnu'" in capsys.readouterr().err
