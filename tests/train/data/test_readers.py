"""Published forms are read whole, and what is wrong in them is named; shards give back what was put in."""

import base64
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data.readers import READERS
from train.data.readers.llava import conversation
from train.data.records import BadSample, Caption, Conversation, Document, decode, encode
from train.data.store import INDEX, decoded, read_shards, write_shards
from vila_jax.errors import ConfigError


def picture(color=200, size=(12, 10), form="JPEG"):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), color, np.uint8)).save(file, form)
    return file.getvalue()


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def split(read):
    read = list(read)
    good = [r for r in read if not isinstance(r, BadSample)]
    return good, sorted(r.reason for r in read if isinstance(r, BadSample))


def tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_llava_json(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path.parent / "outside.jpg").write_bytes(picture())
    samples = [
        {"id": "one", "image": "a.jpg", "conversations": turns("<image>\nWhat?", "A bus.")},
        {"id": 2, "image": ["a.jpg", "b.jpg"], "conversations": turns("<image> or <image>?", "The first.")},
        {"id": "text", "conversations": turns("Why?", "So.", "And?", "No.")},
        {"id": "forgotten mark", "image": "b.jpg", "conversations": turns("What?", "A cat.")},
        {"id": "late start", "conversations": [{"from": "gpt", "value": "Hm."}, *turns("Why?", "So.")]},
        {"id": "gone", "image": "c.jpg", "conversations": turns("<image>", "x")},
        {"id": "out", "image": "../outside.jpg", "conversations": turns("<image>", "x")},
        {"id": "two marks", "image": "a.jpg", "conversations": turns("<image><image>", "x")},
        {"id": "no picture", "conversations": turns("<image>", "x")},
        {"id": "nothing", "conversations": []},
        {"id": "mute", "conversations": turns("Why?", " ")},
        {"id": "stranger", "conversations": [{"from": "it", "value": "x"}]},
        "text",
    ]
    (tmp_path / "data.json").write_text(json.dumps(samples))
    good, bad = split(READERS["llava"](tmp_path / "data.json"))
    assert [r.id for r in good] == ["one", "2", "text", "forgotten mark", "late start"]
    assert [len(r.pictures) for r in good] == [1, 2, 0, 1, 0]
    assert good[3].messages[0]["content"] == "<image>\nWhat?" and good[4].messages[0]["role"] == "user"
    assert bad == [
        *["damaged record"] * 2,
        *["empty conversation"] * 2,
        "missing picture",
        "picture outside the folder",
        *["wrong number of pictures"] * 2,
    ]
    lines = [json.dumps(samples[0]), "{broken", json.dumps(samples[2])]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    good, bad = split(READERS["llava"](tmp_path / "data.jsonl"))
    assert [r.id for r in good] == ["one", "text"] and bad == ["damaged record"]
    for text, error in ("{}", "not a list"), ("[{", "not JSON"):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(ConfigError, match=error):
            split(READERS["llava"](tmp_path / "data.json"))
    with pytest.raises(ConfigError, match="no such file"):
        split(READERS["llava"](tmp_path / "none.json"))


def mmc4(*pictures, text=("a", "b")):
    info = [{"image_name": name, "matched_text_index": index} for name, index in pictures]
    return json.dumps({"text_list": list(text), "image_info": info})


def test_mmc4(tmp_path):
    documents = [
        mmc4(("x.jpg", 1), ("gone.jpg", 0), ("y.png", 0)),
        mmc4(("gone.jpg", 0)),
        mmc4(("x.jpg", 2)),
        mmc4(("x.jpg", 0), text=()),
        "{",
    ]
    bad = ["damaged record", "empty document", "missing picture", "wrong number of pictures"]
    files = {"x.jpg": picture(), "y.png": picture(form="PNG")}
    folder, beside, zipped = tmp_path / "folder", tmp_path / "beside", tmp_path / "zipped"
    for place in folder, beside, zipped:
        place.mkdir()
    (folder / "shard_0.jsonl").write_text("\n".join(documents))
    (folder / "shard_1.jsonl").write_text("")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (beside / "shard_0.jsonl").write_text("\n".join(documents))
    tar(beside / "shard_0.tar", {f"any/{name}": data for name, data in files.items()})
    with zipfile.ZipFile(zipped / "shard_0.jsonl.zip", "w") as archive:
        archive.writestr("shard_0.jsonl", "\n".join(documents))
    (zipped / "shard_1.jsonl.zip").write_bytes(b"PK no zip")
    for path, images, more in (
        (folder, None, ["empty shard"]),
        (beside, None, []),
        (zipped, folder, ["broken shard"]),
    ):
        good, reasons = split(READERS["mmc4"](path, images))
        assert reasons == sorted(bad + more), path
        [document] = good
        assert (document.sentences, document.matched) == (("a", "b"), (1, 0))
        data = [p if isinstance(p, bytes) else Path(p).read_bytes() for p in document.pictures]
        assert data == [files["x.jpg"], files["y.png"]]


def test_mmc4_webdataset(tmp_path):
    document = mmc4(("d0.0.jpg", 1), ("d0.1.png", 0))
    files = {"d0.json": document.encode(), "d0.0.jpg": picture(), "d0.1.png": picture(form="PNG"), "d1.json": b"["}
    tar(tmp_path / "shard.tar", files)
    good, bad = split(READERS["mmc4"](tmp_path / "shard.tar"))
    assert bad == ["damaged record"] and good[0].pictures == (files["d0.0.jpg"], files["d0.1.png"])
    (tmp_path / "shard.tar").write_bytes((tmp_path / "shard.tar").read_bytes()[:1500])
    assert "broken shard" in split(READERS["mmc4"](tmp_path / "shard.tar"))[1]


def test_pickles_are_refused(tmp_path):
    (tmp_path / "shard_0.pkl").write_bytes(b"\x80\x04.")
    for name in "mmc4", "coyo":
        with pytest.raises(ConfigError, match="pickles are not read"):
            split(READERS[name](tmp_path))


def test_coyo(tmp_path):
    files = {"000.jpg": picture(), "000.txt": b"a bus", "000.json": b"{}", "001.txt": b"alone", "002.png": picture()}
    tar(tmp_path / "00000.tar", files)
    (tmp_path / "00001.tar").write_bytes(b"")
    good, bad = split(READERS["coyo"](tmp_path))
    assert good == [Caption("00000.tar/000", "a bus", (files["000.jpg"],))]
    assert bad == ["empty conversation", "empty shard", "missing picture"]


def test_coyo_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    inline, keyed = tmp_path / "inline.parquet", tmp_path / "keyed.parquet"
    parquet.write_table(pyarrow.table({"caption": ["a bus", ""], "jpg": [picture(), picture()]}), inline)
    parquet.write_table(pyarrow.table({"text": ["a cat", "gone"], "key": ["7", "8"]}), keyed)
    (tmp_path / "keyed").mkdir()
    (tmp_path / "keyed" / "7.webp").write_bytes(picture(form="WEBP"))
    good, bad = split(READERS["coyo"](tmp_path))
    assert [r.text for r in good] == ["a bus", "a cat"] and bad == ["empty conversation", "missing picture"]
    inline.write_bytes(b"PAR1 no parquet")
    assert split(READERS["coyo"](inline)) == ([], ["broken shard"])


RECORDS = [
    Conversation("c", ({"role": "user", "content": "<image>é"}, {"role": "assistant", "content": "b"}), (picture(),)),
    Document("d", ("a", "b"), (1, 0), (picture(1), picture(2))),
    Caption("e", "text", (picture(3),)),
    Conversation("t", ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})),
]


@pytest.mark.parametrize("record", RECORDS)
def test_records_come_back_from_bytes(record):
    data = encode(record)
    assert decode(data) == record
    for broken in data[:3], data[:-1], data + b"x", b"\xff" * 40:
        with pytest.raises(BadSample, match="cannot be read"):
            decode(broken)


def test_shards_and_their_index(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(picture(7))
    huge = io.BytesIO()
    Image.new("1", (40000, 40000)).save(huge, "PNG")
    faults = [
        BadSample("missing picture", "gone", "x"),
        Caption("corrupt", "a", (picture()[:200],)),
        Caption("no picture", "a", (b"<html>",)),
        Caption("huge", "a", (huge.getvalue(),)),
        Caption("gone", "a", (str(tmp_path / "none.jpg"),)),
    ]
    given = [*RECORDS, Caption("path", "b", (str(path),)), *faults]
    report = write_shards(given, tmp_path / "set", source="here", shard_bytes=1000)
    assert report.records == 5 and report.pictures == 5
    assert report.bad == {"missing picture": 2, "corrupt picture": 2, "huge picture": 1}
    index = json.loads((tmp_path / "set" / INDEX).read_text())
    assert sum(index["shards"].values()) == 5 and len(index["shards"]) > 1 and len(index["named"]) == 5
    assert [decoded(data) for data in read_shards(tmp_path / "set")] == [
        *RECORDS,
        Caption("path", "b", (path.read_bytes(),)),
    ]
    with pytest.raises(ConfigError, match="already"):
        write_shards(RECORDS, tmp_path / "set", source="here")
    shard = tmp_path / "set" / next(iter(index["shards"]))
    shard.write_bytes(b"")
    with pytest.raises(ConfigError, match="missing or empty"):
        read_shards(tmp_path / "set")
    (tmp_path / "set" / INDEX).unlink()
    with pytest.raises(ConfigError, match="no finished data set"):
        read_shards(tmp_path / "set")
    write_shards(RECORDS, tmp_path / "set", source="here")  # starts over what was left unfinished
    assert len(read_shards(tmp_path / "set")) == len(RECORDS)
    with pytest.raises(ConfigError, match="no record is left"):
        write_shards(faults, tmp_path / "none", source="here")


def test_a_sample_that_is_no_object(tmp_path):
    with pytest.raises(BadSample, match="expected an object"):
        conversation(3, tmp_path, "here")


def test_instructions_of_vflan(tmp_path):
    encoded = base64.b64encode(picture()).decode()
    (tmp_path / "b.jpg").write_bytes(picture(9))
    dialog = "Image Descriptions: a street\nQuestion: How many?\nAnswer: two\nQuestion: Of what\ncolor?\n"
    samples = [
        {"question": "<image>\nWhat <image>is it?\n<image>", "answer:": "A bus. ", "image:": [encoded, "b.jpg"]},
        {"inputs": "Translate: <image>oui ", "targets": "yes"},
        {"question": dialog, "answer": "red", "image": encoded},
        {"question": "Which?", "answer": "this", "image": [encoded] * 9},
        {"question": dialog + "\nAnswer: 3", "answer": "red", "image": encoded},
        {"question": "Which?", "answer": "this", "image": "not base64!"},
        {"question": "Which?", "answer": "this", "image": "../out.jpg"},
        {"question": "Which?"},
    ]
    lines = [json.dumps(sample) for sample in samples]
    (tmp_path / "part-0.jsonl").write_text("\n".join(lines[:2]) + "\n{oh\n")
    (tmp_path / "part-1.jsonl").write_text("\n".join(lines[2:]))
    good, bad = split(READERS["vflan"](tmp_path))
    both, text, turned = good
    assert both.messages[0]["content"] == "<image>\n<image>\nWhat is it?" and both.messages[1]["content"] == "A bus."
    assert both.pictures == (picture(), str((tmp_path / "b.jpg").resolve()))
    assert [m["content"] for m in text.messages] == ["Translate: oui", "yes"] and text.pictures == ()
    said = ["<image>\nHow many?", "two", "Of whatcolor?", "red"]  # the reference takes the line breaks out of the last
    assert [m["content"] for m in turned.messages] == said and turned.pictures == (picture(),)
    reasons = ["picture outside the folder", "wrong number of pictures"]
    assert bad == ["corrupt picture", "damaged record", "damaged record", "damaged record", *reasons]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "part-0.pkl").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickles are not read"):
        list(READERS["vflan"](tmp_path / "old"))
