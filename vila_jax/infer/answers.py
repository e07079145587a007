"""From chunks of token ids to text: what a request gets back."""

import contextlib
import dataclasses
from collections.abc import Generator, Sequence

from vila_jax.infer.counts import Counts
from vila_jax.infer.run import Run
from vila_jax.text.stop import StopStrings
from vila_jax.text.stream import StreamDecoder
from vila_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of a request: of its text, visual ones without and with the budget, and generated ones.

    Attributes:
      cached_tokens: of the prompt, those whose keys and values were kept from an earlier one.
      cached_images: pictures and frames that the vision tower did not see again.
    """

    text_tokens: int
    visual_tokens_full: int
    visual_tokens_kept: int
    completion_tokens: int
    cached_tokens: int = 0
    cached_images: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the decoder read: text and kept visual tokens."""
        return self.text_tokens + self.visual_tokens_kept


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds of wall time; a batch shares them. `compile` happens once per shape and is apart from the others.

    It is the time in which programs were waited for. What they compute may go on meanwhile, if threads compile.
    """

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
        self.stopped = self.finished = False
        self._decoder, self._stops, self._ends = StreamDecoder(tokenizer), StopStrings(stops), set(end_tokens)

    def push(self, tokens: list[int], last: bool) -> str:
        """Takes new tokens, up to the one that completes a stop string, and returns the text that is certain now.

        Args:
          last: whether there will be no more, so that nothing has to be held back.
        """
        pieces = [] if self.finished else [self._push(token) for token in tokens]
        if last and not self.finished:
            pieces += [self._emit(self._decoder.flush()), self._stops.flush()]
        self.finished = last or self.stopped
        self.text += (text := "".join(pieces))
        return text

    def _push(self, token: int) -> str:
        if self.stopped:
            return ""
        self.tokens.append(token)
        return self._emit(self._decoder.push([token]))

    def _emit(self, text: str) -> str:
        text, self.stopped = self._stops.push(text)
        return text

    @property
    def finish_reason(self) -> str:
        ended = self.stopped or (bool(self.tokens) and self.tokens[-1] in self._ends)
        return "stop" if ended else "length"


class Answers:
    """A running batch. Iterate for the new text of every row, chunk by chunk; then ask for the `results`."""

    def __init__(self, run: Run, rows: list[Row], preprocess: float):
        self._run, self._rows, self._preprocess = run, rows, preprocess

    def compile(self, *, wait: bool = True) -> None:
        """Compiles all programs ahead of the iteration: runs nothing, and waits for no weights.

        Args:
          wait: False leaves it to threads. The iteration may begin at once; it waits for each program when it needs it,
            so that pictures are encoded while the decoder is still being compiled.
        """
        self._run.compile(wait=wait)

    def __iter__(self) -> Generator[list[str], None, None]:
        with contextlib.closing(self._run):
            for chunk in self._run:
                rows = zip(self._rows, chunk.tokens, chunk.done, strict=True)
                pieces = [row.push(tokens, last=done) for row, tokens, done in rows]
                for i, row in enumerate(self._rows):
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
    return Usage(
        counts.text,
        counts.visual_full,
        counts.visual_kept,
        len(row.tokens),
        cached_tokens=counts.cached,
        cached_images=counts.cached_images,
    )
