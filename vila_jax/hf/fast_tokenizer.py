"""`tokenizer.json` beside a `tokenizer.model`, which transformers can read only with the sentencepiece package.

VILA reads such a model without the spaces that older code puts behind special tokens (`legacy`), whatever the files
say; in the files of an export they say it.
"""

import json
from collections.abc import Mapping

from etils import epath

from vila_jax.errors import CheckpointError
from vila_jax.hf.out_tensor import json_bytes
from vila_jax.text import tokenizer_files, vocabularies

_MODEL, _FAST, _CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"


def with_fast(files: Mapping[str, bytes], folder: epath.Path) -> dict[str, bytes]:
    """The files of a tokenizer, by their plain name, with a `tokenizer.json`.

    Args:
      folder: where they lie.

    Raises:
      CheckpointError: they are damaged.
    """
    if _MODEL not in files or _FAST in files:
        return dict(files)
    config = json.loads(files.get(_CONFIG, b"{}"))
    changed = {_CONFIG: json_bytes(config | {"legacy": False})} if config.get("legacy") else {}
    return {**files, **changed, _FAST: _fast(files[_MODEL], folder).encode()}


def without_fast(files: Mapping[str, bytes], folder: epath.Path) -> dict[str, bytes]:
    """The files without a `tokenizer.json` that says no more than the others.

    Args:
      folder: where they lie.
    """
    kept = {name: data for name, data in files.items() if name != _FAST}
    if _MODEL not in files or _FAST not in files:
        return dict(files)
    try:
        same = json.loads(files[_FAST]) == json.loads(_fast(files[_MODEL], folder))
    except CheckpointError:
        same = False
    return kept if same else dict(files)


def _fast(model: bytes, folder: epath.Path) -> str:
    config = tokenizer_files.read_json(folder / _CONFIG) | {"legacy": False}
    try:
        backend = vocabularies.from_sentencepiece(model, config)
        named = vocabularies.sentencepiece_tokens(model) | config
        tokenizer_files.add_tokens(backend, folder, named)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises the bare class
        raise CheckpointError(f"the tokenizer cannot be read: {error}", where=str(folder / _MODEL)) from error
    return backend.to_str(pretty=True) + "\n"
