"""From chunks of token ids to text: what a request gets back."""

import dataclasses
from collections.abc import Iterator, Sequence

from vila_jax.infer.engine import Run
from vila_jax.infer.layout import Counts
from vila_jax.text.stop import StopStrings
from vila_jax.text.stream import StreamDecoder
from vila_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of a request: of its text, visual ones without and with the budget, and generated ones."""

    text_tokens: int
    visual_tokens_full: int
    visual_tokens_kept: int
    completion_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the decoder read: text and kept visual tokens."""
        return self.text_tokens + self.visual_tokens_kept


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds of wall time; a batch shares them. `compile` happens once per shape and is apart from the others."""

    preprocess: float
    compile: float
    prefill: float
    decode: float

    @property
    def time_to_first_token(self) -> float:
        """From pictures and prompt to the first token, without compilation."""
        return self.preprocess + self.prefill


@dataclasses.dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
      text: the answer, without special tokens and without the stop string that ended it.
      token_ids: generated ids, the end token included.
      finish_reason: `stop` (end token or stop string) or `length`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    timings: Timings


class Row:
    """The text of one row as its tokens arrive."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], end_tokens: Sequence[int]):
        self.text, self.tokens = "", list[int]()
        self.stopped = False
        self._decoder, self._stops, self._ends = StreamDecoder(tokenizer), StopStrings(stops), set(end_tokens)

    def push(self, tokens: list[int], last: bool) -> str:
        """Takes new tokens and returns the text that is certain now; all of it when they are the last."""
        if self.stopped:
            return ""
        self.tokens += tokens
        text = self._decoder.push(tokens) + (self._decoder.flush() if last else "")
        text, self.stopped = self._stops.push(text)
        if last and not self.stopped:
            text += self._stops.flush()
        self.text += text
        return text

    @property
    def finish_reason(self) -> str:
        ended = self.stopped or (bool(self.tokens) and self.tokens[-1] in self._ends)
        return "stop" if ended else "length"


class Answers:
    """A running batch. Iterate for the new text of every row, chunk by chunk; then ask for the `results`."""

    def __init__(self, run: Run, rows: list[Row], preprocess: float):
        self._run, self._rows, self._preprocess = run, rows, preprocess

    def __iter__(self) -> Iterator[list[str]]:
        finished = [False] * len(self._rows)
        for chunk in self._run:
            pieces = [""] * len(self._rows)
            for i, (row, tokens, done) in enumerate(zip(self._rows, chunk.tokens, chunk.done, strict=True)):
                if finished[i]:
                    continue
                pieces[i] = row.push(tokens, last=done)
                finished[i] = done or row.stopped
                if row.stopped:
                    self._run.stop(i)
            yield pieces

    def results(self) -> list[Generation]:
        """The answers, once the iteration is over."""
        spent = self._run.timings
        timings = Timings(self._preprocess, spent.compile, spent.prefill, spent.decode)
        return [
            Generation(row.text, tuple(row.tokens), row.finish_reason, _usage(counts, row), timings)
            for row, counts in zip(self._rows, self._run.counts, strict=True)
        ]


def _usage(counts: Counts, row: Row) -> Usage:
    return Usage(counts.text, counts.visual_full, counts.visual_kept, len(row.tokens))
