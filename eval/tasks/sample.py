"""A question about pictures, and the benchmark that it comes from: all that a run needs to know of either."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.tasks.files import BadRow, Row, Unreadable
from vila_jax.errors import ConfigError

Picture = bytes | Path | Image.Image
"""The bytes of a picture file, its path, or the picture itself."""

LLAVA, VILA = "llava", "vila"
STYLES = (LLAVA, VILA)
"""Whose prompts: LLaVA-1.5's (or lmms_eval's for LLaVA, where its authors did not run a benchmark), or VILA's."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
      id: unique within the split.
      cluster: what stands or falls together, the picture; standard errors are clustered by it.
      pictures: in the order in which they are shown, before the prompt.
      prompt: what the user says, without marks for pictures.
      references: right answers; none where they are not published.
      answer: what the assistant says where the sample is a demonstration.
      extras: what the metric and the forms of submission read besides.
    """

    id: str
    cluster: str
    pictures: tuple[Picture, ...]
    prompt: str
    references: tuple[str, ...] = ()
    answer: str = ""
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Rows = Callable[[Path, str], Iterator[Row | Unreadable]]
ToSample = Callable[[Row, str], Sample]


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      summary: what is asked.
      published: where its files are.
      metric, variant: names in `eval.metrics`.
      splits: the first is the default.
      max_new_tokens: of an answer, by style.
      rows: of a folder and a split, the questions as the Hub's rows have them, whatever form the files have.
      to_sample: of a row and a style, the sample.
      demonstrated: the split that demonstrations are drawn from; None where there is none.
    """

    name: str
    summary: str
    published: str
    metric: str
    variant: str
    splits: tuple[str, ...]
    max_new_tokens: Mapping[str, int]
    rows: Rows
    to_sample: ToSample
    demonstrated: str | None = None

    def samples(
        self, folder: Path, split: str | None = None, *, style: str = LLAVA, limit: int | None = None
    ) -> Iterator[Sample | Unreadable]:
        """The questions of a split in the order of the files; what cannot be asked is an `Unreadable` in its place.

        Args:
          folder: where the files lie, in the form of the authors or as downloaded from the Hub.
          limit: at most so many.

        Raises:
          ConfigError: there is no such split or style, or a file is missing or damaged as a whole.
        """
        split = self._known(split or self.splits[0], self.splits, "split")
        self._known(style, STYLES, "style")
        return itertools.islice((self._read(row, style, n) for n, row in enumerate(self.rows(folder, split))), limit)

    def demonstrations(self, folder: Path, seed: int, k: int, *, style: str = LLAVA) -> tuple[Sample, ...]:
        """`k` questions with answers from the training split, about different pictures, drawn by a seed.

        Raises:
          ConfigError: there is no training split, or it has fewer readable pictures.
        """
        if k == 0:
            return ()
        if self.demonstrated is None:
            raise ConfigError(f"{self.name} has nothing to draw demonstrations from", where="shots", fix="Ask 0-shot.")
        rng = np.random.default_rng(seed)
        drawn: dict[str, tuple[float, Sample]] = {}  # the k smallest of random numbers, so that one pass is enough
        for sample in self.samples(folder, self.demonstrated, style=style):
            number = float(rng.random())
            if isinstance(sample, Sample) and sample.pictures and sample.answer and sample.cluster not in drawn:
                drawn[sample.cluster] = (number, sample)
                if len(drawn) > k:
                    del drawn[max(drawn, key=lambda cluster: drawn[cluster][0])]
        if len(drawn) < k:
            what = f"{k} demonstrations asked, but {len(drawn)} pictures of {self.demonstrated} can be shown"
            raise ConfigError(what, where=str(folder))
        return tuple(sample for _, sample in sorted(drawn.values(), key=lambda entry: entry[0]))

    def _known(self, name: str, names: Sequence[str], what: str) -> str:
        if name not in names:
            fix = f"One of: {', '.join(names)}."
            raise ConfigError(f"the task {self.name} has no {what} {name!r}", where=what, fix=fix)
        return name

    def _read(self, row: Row | Unreadable, style: str, number: int) -> Sample | Unreadable:
        if isinstance(row, Unreadable):
            return row
        try:
            return self.to_sample(row, style)
        except BadRow as error:
            return Unreadable(_id(row, number), str(error))
        except KeyError as error:
            return Unreadable(_id(row, number), f"there is no field {error}")
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            return Unreadable(_id(row, number), f"it has another form: {error}")


def _id(row: Row, number: int) -> str:
    names = ("question_id", "questionId", "index", "id", "filename")
    return str(next((row[name] for name in names if row.get(name) is not None), f"row {number}"))


def messages(sample: Sample, demonstrations: Sequence[Sample] = ()) -> list[dict[str, Any]]:
    """The conversation that asks a sample: every demonstration a turn of the user and one of the assistant before it.

    No public harness shows pictures in demonstrations, and VILA's authors published no script for theirs; this is the
    form of the chat that their models are trained on, pictures before their question.
    """
    turns: list[dict[str, Any]] = []
    for shown in demonstrations:
        turns += [_asked(shown), {"role": "assistant", "content": shown.answer}]
    return [*turns, _asked(sample)]


def _asked(sample: Sample) -> dict[str, Any]:
    pictures = [{"type": "image", "image": picture} for picture in sample.pictures]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": sample.prompt}]}
