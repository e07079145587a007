"""The page that results are put on."""

import datetime
import hashlib

from eval.report import BEGIN, END, circumstances, insert


def test_a_section_is_replaced_and_what_is_around_it_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nabove\n\n{BEGIN}\n\nold\n\n{END}\n\nbelow\n")
    insert(page, "new\n")
    assert page.read_text() == f"# Title\n\nabove\n\n{BEGIN}\n\nnew\n\n{END}\n\nbelow\n"
    insert(page, "new\n")
    assert page.read_text().count("new") == 1


def test_a_page_without_marks_or_without_anything_gets_them(tmp_path):
    insert(tmp_path / "fresh.md", "a table")
    assert (tmp_path / "fresh.md").read_text() == f"# fresh\n\n{BEGIN}\n\na table\n\n{END}\n"
    (tmp_path / "plain.md").write_text("# Words\n")
    insert(tmp_path / "plain.md", "a table")
    assert (tmp_path / "plain.md").read_text() == f"# Words\n\n{BEGIN}\n\na table\n\n{END}\n"


def test_circumstances(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    facts = circumstances(tmp_path, "python -m eval x", 12.34)
    assert facts["command"] == "python -m eval x" and facts["seconds"] == 12.3
    assert datetime.date.fromisoformat(facts["date"])
    assert facts["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert {"vila_jax", "python", "jax", "flax"} <= facts["versions"].keys()
    assert facts["machine"].endswith("cores") and "cpu" in facts["device"]
