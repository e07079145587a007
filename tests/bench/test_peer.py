"""The comparison with PyTorch runs, and compares equal things."""

import pathlib
import re

from vila_jax.bench import peer


def test_both_sides_answer_alike(tmp_path: pathlib.Path, capsys):
    page = tmp_path / "page.md"
    peer.main(["--preset", "tiny", "--repeats", "2", "--new-tokens", "5", "--out", str(page)])
    text = page.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "greedy ids identical over 5 tokens" in text
    difference = re.search(r"logits at all (\d+) positions ([\d.e+-]+)", text)
    assert difference and int(difference[1]) > 16 and float(difference[2]) < 1e-4
    rows = [line for line in text.splitlines() if line.startswith(("| vila_jax", "| transformers"))]
    assert len(rows) == 3 and rows[-1].count("1.00 x") == 2
