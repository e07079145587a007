"""The image token, which Hugging Face's LLaVA has in its vocabulary and VILA has not.

transformers looks every id of a prompt up in the embedding table before it puts the features of the picture there, so
the id must be a row. Where the table has no row to spare, one is appended to it and to the head: the mean of the
others. What is in the embedding is never used; a logit that is the mean of the others is never the largest, so the
token is never answered. The way back takes the row away again.
"""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from vila_jax.errors import CheckpointError
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.out_tensor import OutTensor
from vila_jax.text.tokenizer import Tokenizer

TABLES = ("decoder.embedding", "decoder.head")
"""What has one row a token."""

_TOKEN = "<image>"
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@dataclasses.dataclass(frozen=True)
class ImageToken:
    """The image token of a target.

    Attributes:
      id: in the vocabulary; None for a target without such a token.
      rows: of the embedding table in the target.
    """

    id: int | None
    rows: int


def added(checkpoint: Checkpoint) -> ImageToken:
    """The token for a model that has none: the id that its tokenizer gives it.

    Raises:
      CheckpointError: there is no tokenizer, or it is larger than the vocabulary of the model.
    """
    folder, rows = checkpoint.tokenizer_folder, checkpoint.config.vlm.decoder.vocab_size
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.stored_size > rows or tokenizer.image_token_id > rows:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.stored_size:,} tokens, but the language model only {rows:,} embeddings",
            where=str(folder),
            fix="Use the tokenizer that was published with these weights.",
        )
    return ImageToken(tokenizer.image_token_id, max(rows, tokenizer.image_token_id + 1))


def removed(checkpoint: Checkpoint) -> ImageToken:
    """No token, and no row for it if it is the last one; other tokens may stand behind it, and stay where they are."""
    rows = checkpoint.config.vlm.decoder.vocab_size
    return ImageToken(None, rows - (checkpoint.config.image_token_id == rows - 1))


def resized(tensor: OutTensor, rows: int) -> OutTensor:
    """An embedding table or head with this number of rows."""
    if tensor.shape[0] == rows:
        return tensor
    return tensor.edited(lambda table: _with_rows(table, rows), (rows, *tensor.shape[1:]))


def _with_rows(table: np.ndarray, rows: int) -> np.ndarray:
    if rows <= len(table):
        return table[:rows]
    mean = np.mean(table, axis=0, dtype=np.float32).astype(table.dtype)
    return np.concatenate([table, np.tile(mean, (rows - len(table), 1))])


def tokenizer_files(files: Mapping[str, bytes], token: ImageToken) -> dict[str, bytes]:
    """The files of a tokenizer, by their plain name, with the image token or without it."""
    edits = {"tokenizer.json": _in_tokenizer, "tokenizer_config.json": _in_config, "added_tokens.json": _in_added}
    files = dict(files)
    if token.id is not None and not _declares_added(files):
        files.setdefault("added_tokens.json", b"{}")
    return {name: _edited(data, edits[name], token) if name in edits else data for name, data in files.items()}


def _declares_added(files: Mapping[str, bytes]) -> bool:
    return "tokenizer.json" in files or "added_tokens_decoder" in json.loads(files.get("tokenizer_config.json", b"{}"))


def _edited(data: bytes, edit, token: ImageToken) -> bytes:
    """The file after `edit`; byte by byte the same where nothing changes."""
    before = json.loads(data)
    after = edit(before, token)
    return data if after == before else (json.dumps(after, indent=2, ensure_ascii=False) + "\n").encode()


def _in_tokenizer(file: dict, token: ImageToken) -> dict:
    entries = file.get("added_tokens") or []
    if token.id is None:
        kept = [entry for entry in entries if entry["content"] != _TOKEN or entry["id"] < token.rows]
    else:
        present = any(entry["content"] == _TOKEN for entry in entries)
        kept = entries if present else [*entries, {"id": token.id, "content": _TOKEN, **_FLAGS}]
    return file | {"added_tokens": kept}


def _in_config(file: dict, token: ImageToken) -> dict:
    entries = file.get("added_tokens_decoder")
    if entries is None:
        return file
    if token.id is None:
        entries = {i: entry for i, entry in entries.items() if entry["content"] != _TOKEN or int(i) < token.rows}
    elif all(entry["content"] != _TOKEN for entry in entries.values()):
        entries = entries | {str(token.id): {"content": _TOKEN, **_FLAGS}}
    return file | {"added_tokens_decoder": entries}


def _in_added(file: dict, token: ImageToken) -> dict:
    if token.id is not None:
        return {_TOKEN: token.id} | file
    return {content: i for content, i in file.items() if content != _TOKEN or i < token.rows}
