"""Data sets of named features, as `tensorflow-datasets` and other writers of ArrayRecord keep them, as records.

    tfds:NAME/SPLIT      DATA/NAME/VERSION/… as tensorflow-datasets has prepared it with `file_format="array_record"`;
                         NAME may hold a config and a version, SPLIT a slice: `tfds:coco/2017:1.1.0/train[:10%]`
    FOLDER               DATA/FOLDER/*.array_record* of `tf.train.Example`s

What the features are is told by their names, or behind an `@`: `tfds:vqa/train@question:q,answer:a`.

    image, conversations        a conversation in LLaVA's form
    image, question, answer     a conversation of one question; `image` may be missing in both
    image, text                 a caption
    text                        a text alone

Neither needs TensorFlow: pictures are kept as the bytes of their files.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain

from train.data.readers.llava import MARK, messages_of
from train.data.records import BadSample, Caption, Conversation, Document, Record
from vila_jax.errors import ConfigError

_NAMES = {
    "image": ("image", "images", "picture", "img", "jpg", "png"),
    "text": ("text", "caption", "captions"),
    "question": ("question", "instruction", "prompt"),
    "answer": ("answer", "answers", "response", "output"),
    "conversations": ("conversations", "messages", "turns"),
}
"""What is looked for -> the names under which it may be."""

_NEEDED = "image and text, question and answer, conversations, or text alone"


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the features that hold what a record is made of; None for what there is not."""

    image: str | None = None
    text: str | None = None
    question: str | None = None
    answer: str | None = None
    conversations: str | None = None

    @classmethod
    def among(cls, features: Sequence[str], given: Mapping[str, str], where: str) -> "Fields":
        """Finds them.

        Args:
          features: names of all features of the data set.
          given: field -> feature, where their names do not tell.

        Raises:
          ConfigError: a feature is not there, or they make no record.
        """
        for field, feature in given.items():
            if field not in _NAMES:
                raise ConfigError(f"{field!r} is no field", where=where, fix=f"There are {', '.join(_NAMES)}.")
            if feature not in features:
                raise ConfigError(f"no feature {feature!r}", where=where, fix=f"There are {', '.join(features)}.")
        found = {
            field: given.get(field) or next((name for name in names if name in features), None)
            for field, names in _NAMES.items()
        }
        fields = cls(**found)
        if not (fields.conversations or (fields.question and fields.answer) or fields.text):
            raise ConfigError(
                f"its features ({', '.join(features)}) are not known to be {_NEEDED}",
                where=where,
                fix="Say which is which behind the name, as in `@question:q,answer:a`.",
            )
        return fields

    def record(self, example: Mapping[str, Any], where: str) -> Record | BadSample:
        """One example as a record, or what is wrong with it."""
        try:
            return self._record(example, where)
        except BadSample as error:
            return error

    def _record(self, example: Mapping[str, Any], where: str) -> Record:
        pictures = _pictures(example.get(self.image), where) if self.image is not None else ()
        if self.conversations is not None:
            turns = _turns(example.get(self.conversations))
            return Conversation(where, messages_of(turns, len(pictures), where), pictures)
        if self.question is not None and self.answer is not None:
            question, answer = (_text(example.get(name), where) for name in (self.question, self.answer))
            turns = [{"from": "human", "value": _marked(question, len(pictures))}, {"from": "gpt", "value": answer}]
            return Conversation(where, messages_of(turns, len(pictures), where), pictures)
        text = _text(example.get(str(self.text)), where)
        if len(pictures) > 1:
            raise BadSample("wrong number of pictures", f"{len(pictures)} pictures of one caption", where)
        return Caption(where, text, pictures) if pictures else Document(where, (text,), ())


def _marked(question: str, pictures: int) -> str:
    """The question behind its pictures; marks in the text are none of ours."""
    return MARK * pictures + "\n" * bool(pictures) + question.replace(MARK, "").strip()


def _text(value: Any, where: str) -> str:
    """A text; of several, such as the answers of several people, the first."""
    if isinstance(value, list | tuple) or (hasattr(value, "tolist") and not isinstance(value, bytes)):
        value = next(iter(value), "")
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise BadSample("damaged record", f"expected a text, got {type(value).__name__}", where)
    if not text.strip():
        raise BadSample("empty conversation", "a text says nothing", where)
    return text


def _pictures(value: Any, where: str) -> tuple[bytes, ...]:
    values = [value] if isinstance(value, bytes) else [] if value is None else list(value)
    if not all(isinstance(one, bytes) for one in values):
        raise BadSample("damaged record", "a picture is not the bytes of a file", where)
    return tuple(values)


def _turns(value: Any) -> Any:
    """Turns as LLaVA writes them; a sequence of features comes as one list for each."""
    if isinstance(value, Mapping):
        value = [dict(zip(value, one, strict=True)) for one in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        return value
    decoded: Callable[[Any], Any] = lambda x: x.decode("utf-8", "replace") if isinstance(x, bytes) else x  # noqa: E731
    return [{key: decoded(part) for key, part in turn.items()} for turn in value if isinstance(turn, Mapping)]


def open_tfds(name: str, data: Path) -> grain.MapDataset[Any]:
    """A data set that tensorflow-datasets has prepared.

    Args:
      name: `NAME/SPLIT`, see above.
      data: folder of the data sets.

    Raises:
      ConfigError: tensorflow-datasets is not installed, there is no such data set or split, or its files are of
        another format.
    """
    tfds = _tfds()
    where = f"tfds:{name}"
    name, given = _mapping(name, where)
    name, slash, split = name.rpartition("/")
    if not slash:
        raise ConfigError("the split is missing", where=where, fix=f"Write tfds:{split}/train.")
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=str(data))
    except Exception as error:  # its own classes differ from version to version
        fix = f"Prepare it with tensorflow-datasets into {data}."
        raise ConfigError(f"there is no such data set: {_first(error)}", where=where, fix=fix) from error
    try:
        fields = Fields.among(list(builder.info.features), given, where)
        skip = {} if fields.image is None else {fields.image: tfds.decode.SkipDecoding()}
        source = builder.as_data_source(split=split, decoders=skip)
    except ConfigError:
        raise
    except Exception as error:
        fix = f'Its splits are {", ".join(builder.info.splits)}; prepare it with file_format="array_record".'
        raise ConfigError(f"it cannot be read: {_first(error)}", where=where, fix=fix) from error
    return grain.MapDataset.source(_Records(source, fields, where))


def open_examples(name: str, data: Path) -> grain.MapDataset[Any]:
    """A folder of ArrayRecord files of `tf.train.Example`s.

    Raises:
      ConfigError: tensorflow-datasets, which brings the form of these messages, is not installed; a file is empty, or
        the first record is no example.
    """
    _tfds()
    from tensorflow_datasets.proto import tf_example_pb2

    where = name
    name, given = _mapping(name, where)
    files = example_files(data / name)
    empty = next((path for path in files if path.stat().st_size == 0), None)
    if empty is not None:
        raise ConfigError("the file is empty", where=str(empty), fix="Write it again, or remove it.")
    source = grain.sources.ArrayRecordDataSource([str(path) for path in files])

    def example(data: bytes) -> dict[str, Any]:
        features = tf_example_pb2.Example.FromString(data).features.feature
        return {key: _value(feature) for key, feature in features.items()}

    try:
        first = example(source[0])
    except Exception as error:
        fix = "Supported: `tf.train.Example`, or what `python -m train prepare` has written."
        raise ConfigError(f"the first record cannot be read: {_first(error)}", where=where, fix=fix) from error
    fields = Fields.among(_nested(first), given, where)
    return grain.MapDataset.source(_Records(source, fields, where, lambda data: _with_nested(example(data))))


def example_files(folder: Path) -> list[Path]:
    """The ArrayRecord files of a folder, whose names may end with `-00000-of-00001`."""
    return sorted(path for path in folder.glob("*.array_record*") if path.is_file())


def split_mapping(name: str) -> str:
    """A name without what its features are called."""
    return name.partition("@")[0]


@dataclasses.dataclass(frozen=True)
class _Records:
    """A source for grain: the examples of another one as records, whose ids are their numbers in it."""

    examples: Any
    fields: Fields
    name: str
    read: Callable[[Any], Mapping[str, Any]] = lambda example: example

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Record | BadSample:
        where = f"{self.name}[{index}]"
        try:
            example = self.read(self.examples[index])
        except Exception as error:  # bytes that are no message
            return BadSample("damaged record", f"it cannot be read: {_first(error)}", where)
        return self.fields.record(example, where)


def _mapping(name: str, where: str) -> tuple[str, dict[str, str]]:
    name, at, text = name.partition("@")
    pairs = [pair.partition(":") for pair in text.split(",")] if at else []
    if any(not field or not feature for field, _, feature in pairs):
        raise ConfigError(f"got {text!r}", where=where, fix="Write field:feature pairs, as in `@question:q,answer:a`.")
    return name, {field: feature for field, _, feature in pairs}


def _value(feature: Any) -> Any:
    """One value, or a list of several."""
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values[0] if len(values) == 1 else values


def _nested(example: Mapping[str, Any]) -> list[str]:
    """Names of the features; `conversations/from` belongs to `conversations`."""
    return list(dict.fromkeys(name.partition("/")[0] for name in example))


def _with_nested(example: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in example.items():
        outer, slash, inner = name.partition("/")
        if slash:
            result.setdefault(outer, {})[inner] = value if isinstance(value, list) else [value]
        else:
            result[name] = value
    return result


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        fix = "Install it: pip install 'vila-jax[tfds]'."
        raise ConfigError("tensorflow-datasets is not installed", where="tfds", fix=fix) from error
    return tensorflow_datasets


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
