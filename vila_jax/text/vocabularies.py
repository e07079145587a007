"""Builds a tokenizer from the files of folders without a `tokenizer.json`.

Two kinds are published: a sentencepiece BPE model (Llama, Vicuna, Yi) and a byte-level BPE as `vocab.json` and
`merges.txt` (Qwen2, GPT-2). Both give the ids of the fast tokenizers that `transformers` converts them to, and need
neither `transformers` nor the `sentencepiece` and `protobuf` packages.
"""

import dataclasses
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

_SPACE = "▁"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # sentencepiece_model.proto: SentencePiece.Type
_BPE = 2  # TrainerSpec.ModelType

# tokenization_qwen2.py of transformers
_QWEN_2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """What a sentencepiece model file holds, as far as it is used.

    Attributes:
      pieces: `(text, type)` of every id.
      model_type: 1 unigram, 2 BPE, 3 word, 4 character.
      unk_id, bos_id, eos_id: ids of these pieces, -1 when the model has none.
      normalizes: whether texts are normalised by a character map first.
    """

    pieces: tuple[tuple[str, int], ...]
    model_type: int
    unk_id: int
    bos_id: int
    eos_id: int
    normalizes: bool

    @classmethod
    def parse(cls, data: bytes) -> "SentencePieceModel":
        """Reads a `tokenizer.model` file: a protocol buffer, `ModelProto` of sentencepiece_model.proto.

        Raises:
          ValueError: the data is not such a message.
        """
        pieces: list[tuple[str, int]] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode("utf-8"), piece.get(3, 1)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        if not pieces:
            raise ValueError("it holds no pieces")
        unk, bos, eos = (_signed(trainer.get(field, default)) for field, default in ((40, 0), (41, 1), (42, 2)))
        return cls(tuple(pieces), trainer.get(3, 1), unk, bos, eos, normalizes=bool(normalizer.get(2)))

    def token(self, index: int) -> str | None:
        """The piece with this id; None when the model has no such piece."""
        return self.pieces[index][0] if 0 <= index < len(self.pieces) else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("it ends inside a number")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protocol buffer message: `(number, int | bytes | float)`."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"it holds a field of unknown kind {kind}")
        if at + size > len(data):
            raise ValueError("it ends inside a field")
        chunk, at = data[at : at + size], at + size
        yield key >> 3, struct.unpack("<f", chunk)[0] if kind == 5 else chunk


def _merges(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of pieces that join to a piece, earlier pieces first: a sentencepiece model stores no merges."""
    ranked = [
        (index, -cut, (piece[:cut], piece[cut:]))
        for piece, index in vocabulary.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return [pair for _, _, pair in sorted(ranked)]


def from_sentencepiece(data: bytes, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Builds the tokenizer of a Llama-style sentencepiece BPE model.

    Args:
      data: content of `tokenizer.model`.
      config: content of `tokenizer_config.json`. `legacy` (default false) puts a space before the text after every
        special token, instead of the first text only; `add_prefix_space` (default true) turns both off;
        `add_bos_token` (default true, as Llama was trained) and `add_eos_token` (default false).

    Raises:
      ValueError: the data is damaged, or is a model of another kind.
    """
    model = SentencePieceModel.parse(data)
    if model.model_type != _BPE or model.normalizes:
        raise ValueError("only BPE models without text normalisation are read")
    vocabulary = {text: index for index, (text, _) in enumerate(model.pieces)}
    if len(vocabulary) != len(model.pieces):
        raise ValueError("it holds a piece twice")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary),
            unk_token=model.token(model.unk_id),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = config.get("add_prefix_space") is not False
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_tokens(
        [
            AddedToken(text, normalized=False, special=kind != _USER_DEFINED)
            for text, kind in model.pieces
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    bos = model.token(model.bos_id) if config.get("add_bos_token", True) else None
    eos = model.token(model.eos_id) if config.get("add_eos_token", False) else None
    edges = [token for token in (bos, eos) if token is not None]
    backend.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        special_tokens=[(token, vocabulary[token]) for token in edges],
    )
    return backend


def sentencepiece_tokens(data: bytes) -> dict[str, str]:
    """The special tokens that a sentencepiece model names: `bos_token`, `eos_token`, `unk_token`."""
    model = SentencePieceModel.parse(data)
    named = {"bos_token": model.bos_id, "eos_token": model.eos_id, "unk_token": model.unk_id}
    return {name: text for name, index in named.items() if (text := model.token(index)) is not None}


def from_vocabulary(vocabulary: str, merges: str, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Builds a byte-level BPE tokenizer.

    Args:
      vocabulary: content of `vocab.json`.
      merges: content of `merges.txt`.
      config: content of `tokenizer_config.json`; its `tokenizer_class` tells how texts are split into words.

    Raises:
      ValueError: the files are damaged, or the class is not known.
    """
    family = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    prefix = bool(config.get("add_prefix_space", False))
    splits: Mapping[str, Any] = {
        "Qwen2Tokenizer": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN_2_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
            ]
        ),
        "GPT2Tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True),
    }
    if family not in splits:
        raise ValueError(f"tokenizer_class {family!r} is not one of {', '.join(splits)}")
    ids = json.loads(vocabulary)
    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    if not isinstance(ids, dict) or any(line.count(" ") != 1 for line in lines):
        raise ValueError("vocab.json must hold a mapping, and merges.txt two pieces a line")
    pairs = [(left, right) for left, _, right in (line.rstrip("\r").partition(" ") for line in lines)]
    backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs))
    if family == "Qwen2Tokenizer":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = splits[family]
    backend.decoder = decoders.ByteLevel()
    return backend
