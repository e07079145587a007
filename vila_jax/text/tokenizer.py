"""The tokenizer of a checkpoint: text to ids and back, its special tokens and its chat template.

Built on the `tokenizers` library alone. `transformers.AutoTokenizer` gives the same ids, but reads the model's config
through a module that imports torch wherever torch is installed; and its fast tokenizers are this library anyway.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from etils import epath

from vila_jax.errors import CheckpointError, PromptError
from vila_jax.text import tokenizer_files, vocabularies

_LOOKED_FOR = "tokenizer.json, tokenizer.model, vocab.json with merges.txt"
_CONVERT = "Make a tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers."


class Tokenizer:
    """Text to token ids and back.

    Attributes:
      special_tokens: named special tokens, e.g. `{"bos_token": "<s>"}`.
      chat_template: Jinja source of the checkpoint's chat template, or None.
      image_token: text that stands for one image in a prompt.
      image_token_id: its id.
      bos_token, bos_id: the token that begins a text, or None.
      eos_ids: ids that end a text; a model's generation config may add others.
      pad_id: id to pad with: the padding token, else the end token, else 0.
      vocab_size: number of tokens, added ones included.
      stored_size: number of tokens that the files hold, without those that are added to them here; a model's embedding
        table has at least as many rows.
      added_ids: ids of the tokens that are not made of pieces, such as `<|im_end|>`.
      special_ids: those among them that `decode` leaves out.
      byte_ids: ids of the tokens that stand for one byte each (sentencepiece's byte fallback); empty for most.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        image_token_id: int | None = None,
        added_tokens: Sequence[str] = (),
    ):
        """Wraps a tokenizer of the `tokenizers` library.

        Args:
          backend: the tokenizer; changed so that it neither truncates nor pads, and holds the image token.
          special_tokens: named special tokens.
          chat_template: Jinja source.
          image_token: text that stands for one image; added to the vocabulary when it is missing.
          image_token_id: the id that the model's config gives it; None when the config gives none.
          added_tokens: special tokens to append to the vocabulary where they are missing, in this order.

        Raises:
          CheckpointError: the image token has another id than the model's config says.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.stored_size: int = backend.get_vocab_size(with_added_tokens=True)
        backend.add_tokens([tokenizers.AddedToken(token, special=True) for token in added_tokens])
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self.image_token, self.image_token_id = _hold_image_token(backend, image_token, image_token_id)
        self.bos_token = self.special_tokens.get("bos_token")
        self.bos_id = self._special_id("bos_token")
        eos = self._special_id("eos_token")
        self.eos_ids: tuple[int, ...] = () if eos is None else (eos,)
        pad = self._special_id("pad_token")
        self.pad_id: int = pad if pad is not None else eos or 0
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.byte_ids = _byte_ids(backend)
        added = backend.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(index for index, token in added.items() if token.special)

    @classmethod
    def from_folder(
        cls,
        folder: epath.PathLike,
        *,
        image_token_id: int | None = None,
        added_tokens: Sequence[str] = (),
        legacy: bool | None = None,
    ) -> "Tokenizer":
        """Reads the tokenizer of a checkpoint.

        Args:
          folder: local or remote (`gs://`) folder with `tokenizer.json`, or `tokenizer.model` (sentencepiece), or
            `vocab.json` and `merges.txt`; and the files that describe special tokens and the chat template.
          image_token_id: id of the image token by the model's config.
          added_tokens: special tokens to append to the vocabulary where they are missing, in this order.
          legacy: how a `tokenizer.model` treats the text after a special token (see `from_sentencepiece`), where the
            model's code knows better than its `tokenizer_config.json`.

        Raises:
          CheckpointError: the files are missing, damaged, or contradict the model's config.
        """
        path = epath.Path(folder)
        config = tokenizer_files.read_json(path / "tokenizer_config.json")
        config |= {} if legacy is None else {"legacy": legacy}
        try:
            backend, defaults = _read_backend(path, config)
            tokenizer_files.add_tokens(backend, path, {**defaults, **config})
        except CheckpointError:
            raise
        except Exception as error:  # the tokenizers library raises the bare class
            raise CheckpointError(f"the tokenizer cannot be read: {error}", where=str(path), fix=_CONVERT) from error
        special = {**defaults, **tokenizer_files.special_tokens(path, config)}
        processor = tokenizer_files.read_json(path / "processor_config.json")
        return cls(
            backend,
            special_tokens=special,
            chat_template=tokenizer_files.chat_template(path, config),
            image_token=special.get("image_token") or processor.get("image_token") or "<image>",
            image_token_id=image_token_id,
            added_tokens=added_tokens,
        )

    def without_chat_template(self) -> "Tokenizer":
        """The same tokenizer, whose prompts are written by a conversation style."""
        other = copy.copy(self)
        other.chat_template = None
        return other

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
          text: special tokens written in it become their ids.
          add_special_tokens: whether to add what the tokenizer puts around every text, such as BOS.

        Raises:
          PromptError: the text is not valid Unicode.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise PromptError("the text holds a lone surrogate, which is not valid Unicode", where="prompt") from error

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a rendered chat: as `encode`, but without a second BOS when the template wrote one."""
        return self.encode(text, add_special_tokens=not (self.bos_token and text.startswith(self.bos_token)))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary (padding of the embedding table) are left out."""
        return self._backend.decode([int(index) for index in ids], skip_special_tokens=skip_special_tokens)


def _read_backend(folder: epath.Path, config: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer in the folder, and the special tokens that it names itself."""
    if (path := folder / "tokenizer.json").exists():
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")), {}
    if (path := folder / "tokenizer.model").exists():
        data = path.read_bytes()
        return vocabularies.from_sentencepiece(data, config), vocabularies.sentencepiece_tokens(data)
    if (path := folder / "vocab.json").exists() and (merges := folder / "merges.txt").exists():
        texts = path.read_text(encoding="utf-8"), merges.read_text(encoding="utf-8")
        return vocabularies.from_vocabulary(*texts, config), {}
    raise CheckpointError(
        f"the folder holds no tokenizer; looked for {_LOOKED_FOR}",
        where=str(folder),
        fix="Copy the tokenizer's files beside the weights.",
    )


def _hold_image_token(backend: tokenizers.Tokenizer, token: str, expected: int | None) -> tuple[str, int]:
    """Makes the image token one special token, with the id that the model expects."""
    if token not in {added.content for added in backend.get_added_tokens_decoder().values()}:
        backend.add_special_tokens([token])  # the next free id, or the one that the vocabulary has for it
    found = backend.token_to_id(token)
    if expected is not None and found != expected:
        raise CheckpointError(
            f"the model expects image token id {expected}, but the tokenizer gives {token!r} the id {found}",
            where="image_token_index",
            fix="Use the tokenizer files that belong to this checkpoint.",
        )
    assert found is not None
    return token, found


def _byte_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Ids of `<0x00>` … `<0xFF>`, where the tokenizer decodes them as single bytes; else empty."""
    ids = [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    letter = ids[ord("A")]
    if letter is None or backend.decode([letter]) != "A":
        return frozenset()
    return frozenset(index for index in ids if index is not None)
