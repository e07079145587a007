"""The files beside a tokenizer: special tokens, added tokens and the chat template, in all their published spellings.

Newer folders say everything in `tokenizer.json` and `tokenizer_config.json`; older ones spread it over
`special_tokens_map.json` and `added_tokens.json`. The order in which they are believed is that of `transformers`.
"""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from etils import epath

from vila_jax.errors import CheckpointError

_STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_json(path: epath.Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty when there is no such file.

    Raises:
      CheckpointError: the file cannot be read, or is not a JSON mapping.
    """
    if not path.exists():
        return {}
    value = _parsed(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"expected a JSON mapping, got {type(value).__name__}", where=str(path))
    return value


def _parsed(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"not readable as JSON ({error})", where=str(path), fix="Fetch the file again."
        ) from error


def special_tokens(folder: epath.Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens, e.g. `{"bos_token": "<s>", "image_token": "<image>"}`, as templates see them."""
    values = {**config}
    if "added_tokens_decoder" not in config:  # an older layout, in which this file has the last word
        values |= read_json(folder / "special_tokens_map.json")
    extra = values.get("extra_special_tokens")
    values |= extra if isinstance(extra, dict) else {}
    named = {key: _content(value) for key, value in values.items() if key.endswith("_token")}
    return {key: content for key, content in named.items() if content is not None}


def _content(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None


def _unnamed_special(folder: epath.Path, config: Mapping[str, Any]) -> list[str]:
    values = config if "added_tokens_decoder" in config else {**config, **read_json(folder / "special_tokens_map.json")}
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    contents = [_content(value) for value in (extra if isinstance(extra, list) else extra.values())]
    return [content for content in contents if content is not None]


def add_tokens(backend: tokenizers.Tokenizer, folder: epath.Path, config: Mapping[str, Any]) -> None:
    """Registers every added and special token that the folder declares and the tokenizer does not hold yet."""
    named = special_tokens(folder, config)
    special = [*(named[key] for key in _STANDARD if key in named), *_unnamed_special(folder, config)]
    special += [content for key, content in named.items() if key not in _STANDARD]
    declared = _declared(folder, config, set(special))
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    missing = [token for token in declared if repr(token) not in known]
    contents = {token.content for token in backend.get_added_tokens_decoder().values()}
    contents |= {token.content for token in missing}
    for content in dict.fromkeys(special):
        if content not in contents:
            missing.append(tokenizers.AddedToken(content, special=True))
    backend.add_tokens(missing)


def _declared(folder: epath.Path, config: Mapping[str, Any], special: set[str]) -> list[tokenizers.AddedToken]:
    table = config.get("added_tokens_decoder")
    if isinstance(table, Mapping):
        entries = sorted((int(index), token) for index, token in table.items() if isinstance(token, Mapping))
        return [tokenizers.AddedToken(t["content"], **{k: bool(t[k]) for k in _FLAGS if k in t}) for _, t in entries]
    added = sorted(read_json(folder / "added_tokens.json").items(), key=lambda item: item[1])
    return [
        tokenizers.AddedToken(content, normalized=content not in special, special=content in special)
        for content, _ in added
    ]


def chat_template(folder: epath.Path, config: Mapping[str, Any]) -> str | None:
    """The folder's chat template, from the first of its places that holds one; None when none does.

    The order is that of the processors of `transformers`, which do not look at the tokenizer's own template; it comes
    last here.
    """
    template = _named_template(read_json(folder / "processor_config.json").get("chat_template"))
    if template is None:
        template = _named_template(read_json(folder / "chat_template.json").get("chat_template"))
    if template is None and (path := folder / "chat_template.jinja").exists():
        try:
            template = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"not readable as text ({error})", where=str(path)) from error
    return _named_template(config.get("chat_template")) if template is None else template


def _named_template(value: Any) -> str | None:
    """The template called `default` when there are several."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)}
    value = value.get("default") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None
