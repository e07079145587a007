"""Data sets by name: prepared here, by tensorflow-datasets, by others, or drawn."""

import io
import sys
import types

import grain
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from train.data.mixture import mix
from train.data.records import BadSample, Caption, Conversation, Document, decode
from train.data.sources import open_source
from train.data.store import write_shards
from vila_jax.errors import ConfigError

tfds = pytest.importorskip("tensorflow_datasets")


def picture(shade):
    file = io.BytesIO()
    Image.fromarray(np.full((5, 7, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def prepare(folder, name, features, examples):
    """A data set as tensorflow-datasets writes it."""

    def builder(**methods):
        kind = type(
            name.title(), (tfds.core.GeneratorBasedBuilder,), {"VERSION": tfds.core.Version("1.0.0"), **methods}
        )
        return kind(data_dir=str(folder), file_format="array_record")

    made = builder(
        _info=lambda self: tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features)),
        _split_generators=lambda self, _: {"train": enumerate(examples)},
        _generate_examples=lambda self: (),
    )
    tfds.disable_progress_bar()
    made.download_and_prepare()
    assert "tensorflow" not in sys.modules
    return folder


IMAGE, TEXT = tfds.features.Image(encoding_format="png"), tfds.features.Text()


def everything(source):
    return sorted((source[i] for i in range(len(source))), key=repr)


def test_questions_of_tfds(tmp_path):
    features = {"image": IMAGE, "question": TEXT, "answers": tfds.features.Sequence(TEXT)}
    examples = [{"image": picture(i), "question": f"<image> q{i}?", "answers": [f"a{i}", "b"]} for i in range(9)]
    prepare(tmp_path, "quiz", features, examples)
    records = everything(open_source("tfds:quiz/train", tmp_path))
    by_question = {record.messages[0]["content"]: record for record in records}
    assert len(by_question) == 9
    for i in range(9):
        record = by_question[f"<image>\nq{i}?"]
        assert isinstance(record, Conversation) and record.pictures == (picture(i),)  # the bytes of the file itself
        assert record.messages[1] == {"role": "assistant", "content": f"a{i}"}
    assert len({record.id for record in records}) == 9
    assert len(open_source("tfds:quiz:1.0.0/train[:3]", tmp_path)) == 3
    seen = list(mix("tfds:quiz/train*2", {"tfds:quiz/train": open_source("tfds:quiz/train", tmp_path)}))
    assert len(seen) == 18 and {record.id for record in seen} == {record.id for record in records}


def test_captions_conversations_and_texts_of_tfds(tmp_path):
    prepare(tmp_path, "shown", {"pic": IMAGE, "label": TEXT}, [{"pic": picture(3), "label": "a cat"}])
    [caption] = everything(open_source("tfds:shown/train@image:pic,text:label", tmp_path))
    assert caption == Caption("tfds:shown/train@image:pic,text:label[0]", "a cat", (picture(3),))
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    sequence = tfds.features.Sequence({"from": TEXT, "value": TEXT})
    prepare(tmp_path, "talk", {"conversations": sequence}, [{"conversations": turns}])
    [talk] = everything(open_source("tfds:talk/train", tmp_path))
    assert [m["content"] for m in talk.messages] == ["hi", "hello"] and talk.pictures == ()
    prepare(tmp_path, "prose", {"text": TEXT}, [{"text": "Once."}, {"text": " "}])
    text, bad = sorted(everything(open_source("tfds:prose/train", tmp_path)), key=lambda r: isinstance(r, BadSample))
    assert isinstance(text, Document) and text.sentences == ("Once.",)
    assert bad.reason == "empty conversation"


def test_what_tfds_cannot_give(tmp_path, monkeypatch):
    prepare(tmp_path, "odd", {"left": TEXT}, [{"left": "x"}])
    with pytest.raises(ConfigError, match=r"left.* are not known"):
        open_source("tfds:odd/train", tmp_path)
    with pytest.raises(ConfigError, match="no feature 'right'"):
        open_source("tfds:odd/train@text:right", tmp_path)
    with pytest.raises(ConfigError, match="'words' is no field"):
        open_source("tfds:odd/train@words:left", tmp_path)
    with pytest.raises(ConfigError, match="Its splits are train"):
        open_source("tfds:odd/test@text:left", tmp_path)
    with pytest.raises(ConfigError, match="there is no such data set"):
        open_source("tfds:even/train", tmp_path)
    with pytest.raises(ConfigError, match="the split is missing"):
        open_source("tfds:odd", tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match=r"vila-jax\[tfds\]"):
        open_source("tfds:odd/train", tmp_path)


def write_examples(path, examples):
    from tensorflow_datasets.proto import tf_example_pb2 as pb

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        if isinstance(example, bytes):
            writer.write(example)
            continue
        message = pb.Example()
        for key, value in example.items():
            message.features.feature[key].bytes_list.value.extend(value if isinstance(value, list) else [value])
        writer.write(message.SerializeToString())
    writer.close()


def test_a_folder_of_examples(tmp_path):
    good = {"image": [picture(1), picture(2)], "prompt": b"What?", "response": b"Two."}
    write_examples(tmp_path / "web" / "x.array_record-00000-of-00002", [good, b"\xff\xff"])
    write_examples(tmp_path / "web" / "x.array_record-00001-of-00002", [good | {"image": picture(3)}])
    source = open_source("web", tmp_path)
    assert len(source) == 3 and source[0].messages[0]["content"] == "<image><image>\nWhat?"
    assert source[0].pictures == (picture(1), picture(2)) and source[2].pictures == (picture(3),)
    assert source[1].reason == "damaged record"
    turns = {"conversations/from": [b"human", b"gpt"], "conversations/value": [b"hi", b"yo"]}
    write_examples(tmp_path / "talk" / "x.array_record", [turns])
    assert [m["content"] for m in open_source("talk", tmp_path)[0].messages] == ["hi", "yo"]
    write_examples(tmp_path / "other" / "x.array_record", [b"no message at all"])
    with pytest.raises(ConfigError, match="the first record cannot be read"):
        open_source("other", tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.array_record").write_bytes(b"")
    with pytest.raises(ConfigError, match="is empty"):
        open_source("none", tmp_path)


def test_prepared_and_drawn(tmp_path, monkeypatch):
    write_shards([Caption("c", "a dog", (picture(1),))], tmp_path / "dogs", source="test")
    assert decode(open_source("dogs", tmp_path)[0]).text == "a dog"
    drawn = types.SimpleNamespace(
        DRAWN={"scenes:captions": lambda: grain.MapDataset.source([Caption("d", "x", (b"",))])}
    )
    monkeypatch.setitem(sys.modules, "train.scenes", drawn)
    assert open_source("scenes:captions", tmp_path)[0].id == "d"
    with pytest.raises(ConfigError, match="Did you mean 'scenes:captions'"):
        open_source("scenes:caption", tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'dogs'"):
        open_source("dog", tmp_path)
    with pytest.raises(ConfigError, match="unknown kind of data set 'seens'"):
        open_source("seens:captions", tmp_path)
    (tmp_path / "half").mkdir()
    with pytest.raises(ConfigError, match="no finished data set"):
        open_source("half", tmp_path)
