"""`python -m train prepare` as a user meets it."""

import io
import json

from PIL import Image

from train.__main__ import main
from train.data.records import decode
from train.data.store import INDEX, read_shards


def data_set(folder, samples=3):
    file = io.BytesIO()
    Image.new("RGB", (9, 7)).save(file, "JPEG")
    (folder / "a.jpg").write_bytes(file.getvalue())
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bus."}]
    data = [{"id": i, "image": ("a.jpg", "gone.jpg")[i % 2], "conversations": turns} for i in range(samples)]
    (folder / "data.json").write_text(json.dumps(data))
    return folder / "data.json"


def test_it_reports_what_it_did(tmp_path, capsys):
    source = data_set(tmp_path)
    assert main(["prepare", "llava", str(source), "--out", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().err
    assert "left out: missing picture" in said and "written to" in said
    assert len(read_shards(tmp_path / "set")) == 2
    assert json.loads((tmp_path / "set" / INDEX).read_text())["bad"] == {"missing picture": 1}


def test_errors_say_what_to_do(tmp_path, capsys):
    assert main(["prepare", "llava", str(tmp_path / "none.json"), "--out", str(tmp_path / "set")]) == 3
    assert "Check the path" in capsys.readouterr().err
    source = data_set(tmp_path)
    assert main(["prepare", "coyo", str(tmp_path), "--out", str(tmp_path / "set")]) == 3
    assert "no .tar or .parquet file" in capsys.readouterr().err
    assert main(["prepare", "llava", str(source), "--out", str(tmp_path / "set")]) == 0
    assert main(["prepare", "llava", str(source), "--out", str(tmp_path / "set")]) == 3
    assert "already" in capsys.readouterr().err


def test_samples_are_picked_evenly(tmp_path, capsys):
    lines = [json.dumps({"inputs": f"q{i}", "targets": "a"}) for i in range(11)]
    (tmp_path / "flan.jsonl").write_text("\n".join(lines))
    asked = ["prepare", "vflan", str(tmp_path / "flan.jsonl"), "--out", str(tmp_path / "set"), "--pick"]
    assert main([*asked, "12"]) == 3
    assert "Use 1 to 11" in capsys.readouterr().err
    assert main([*asked, "4"]) == 0
    records = [decode(data) for data in read_shards(tmp_path / "set")]
    assert [record.messages[0]["content"] for record in records] == ["q0", "q3", "q6", "q10"]
