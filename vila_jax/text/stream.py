"""Text of tokens that arrive one after the other."""

from collections.abc import Sequence

from vila_jax.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # what an unfinished character decodes to


class StreamDecoder:
    """Turns token ids into pieces of text whose concatenation is the text of all ids.

    Decoding each token alone would lose the spaces at word boundaries (sentencepiece) and tear characters that span
    several tokens. So a window of the last tokens is decoded as a whole, and the part that no further token can
    change is given out:

        ids        [F0] [9F] [98] [80] ▁nice
        pieces      ""   ""   ""   "😀" " nice"

    A run of byte tokens (`<0xF0>`) of a sentencepiece tokenizer is held back until a token of another kind ends it,
    because one wrong byte turns the whole run into replacement characters.

    Args:
      tokenizer: decodes.
      skip_special_tokens: whether special tokens are left out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._given = 0  # characters of the window's text that were given out

    def push(self, ids: Sequence[int]) -> str:
        """Takes the next ids, returns the text that is certain by now."""
        # An invisible token changes nothing, but would end the run of bytes that it stands in.
        fresh = [int(index) for index in ids if not self._is_invisible(int(index))]
        self._window += fresh
        if not fresh or fresh[-1] in self._tokenizer.byte_ids:
            return ""
        text = self._decode(self._window)
        complete = not text.endswith(_REPLACEMENT)
        certain = text if complete else text[:-1]
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        # The window may start at the fresh ids once they have text of their own: then they, like a longer window,
        # absorb what decoding does to the start of a text (sentencepiece drops one space there).
        if complete and (tail := self._decode(fresh)):
            self._window, self._given = fresh, len(tail)
        return piece

    def flush(self) -> str:
        """The text held back, when no more ids come."""
        piece = self._decode(self._window)[self._given :]
        self._window, self._given = [], 0
        return piece

    def _is_invisible(self, index: int) -> bool:
        return index >= self._tokenizer.vocab_size or (self._skip and index in self._tokenizer.special_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
