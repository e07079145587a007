"""Which checkpoint this is, whatever its folder is called."""

import concurrent.futures
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from vila_jax.hf.checkpoint import Checkpoint

_TEXT_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"),
)
_BLOCK = 1 << 22


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """Over the contents of all weights and of the files that say how texts and pictures are prepared."""
    weights = [checkpoint.shards[name].path for name in sorted(checkpoint.shards)]
    folders = dict.fromkeys((checkpoint.folder, checkpoint.tokenizer_folder))
    texts = [folder / name for folder in folders for name in _TEXT_FILES if (folder / name).exists()]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing large blocks lets other threads run
        return fingerprint(list(pool.map(_file_hash, [*weights, *texts])))


def _file_hash(path: epath.Path) -> str:
    found = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def fingerprint(values: Sequence[Any]) -> str:
    """A hash of plain data."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
