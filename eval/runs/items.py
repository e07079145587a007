"""The samples of a task as a run asks them: numbered, as conversations, with demonstrations before the question."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.tasks import Sample, Task, Unreadable, messages
from vila_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a run.

    Attributes:
      index: its place among those of the task, from 0.
      messages: the conversation with its pictures; empty for a question that cannot be asked.
      broken: why it cannot be asked.
    """

    index: int
    id: str
    cluster: str
    messages: list[dict[str, Any]]
    references: tuple[str, ...] = ()
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    broken: str | None = None

    @property
    def question(self) -> str:
        """What is asked, without demonstrations."""
        return self.messages[-1]["content"][-1]["text"] if self.messages else ""


@dataclasses.dataclass(frozen=True)
class Questions:
    """Which samples are asked, and how.

    Attributes:
      folder: where the files of the task lie.
      style: whose prompts, see `eval.tasks`.
      limit: only the first so many.
      shots: demonstrations before each question, the same for all; drawn from the training split by `seed`.
    """

    task: Task
    folder: Path
    split: str
    style: str
    limit: int | None = None
    shots: int = 0
    seed: int = 0

    def demonstrations(self) -> tuple[Sample, ...]:
        """The samples that are shown with their answers."""
        return self.task.demonstrations(self.folder, self.seed, self.shots, style=self.style)

    def items(self, demonstrations: tuple[Sample, ...] = (), host: tuple[int, int] = (0, 1)) -> Iterator[Item]:
        """The questions in order; of several hosts the share of this one, `[i::n]`."""
        samples = self.task.samples(self.folder, self.split, style=self.style, limit=self.limit)
        for index, sample in enumerate(samples):
            if index % host[1] == host[0]:
                yield _item(index, sample, demonstrations)

    def describe(self, demonstrations: tuple[Sample, ...]) -> tuple[dict[str, Any], str]:
        """What the header of a run says of its questions, and a hash of their contents; reads all of them once.

        The header has the ids alone: a picture that was missing may be there when the run goes on. What else changes in
        a sample changes its key.

        Raises:
          ConfigError: there are none, or two have the same id.
        """
        ids, contents = list[str](), hashlib.sha256()
        for item in self.items():
            ids.append(item.id)
            known = [item.id, item.question, item.references, dict(item.extras)]
            contents.update(json.dumps(known, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        if not ids:
            raise ConfigError(f"{self.task.name} has no sample in {self.split}", where=str(self.folder))
        if repeated := [name for name, count in collections.Counter(ids).items() if count > 1]:
            what = f"{len(repeated)} ids of {self.task.name} stand more than once, {repeated[0]!r} among them"
            raise ConfigError(what, where=str(self.folder), fix="Results are kept by id: make them unique.")
        description = {
            "name": self.task.name,
            "split": self.split,
            "style": self.style,
            "metric": self.task.metric,
            "variant": self.task.variant,
            "limit": self.limit,
            "n_expected": len(ids),
            "ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
            "shots": self.shots,
            "demonstrations": {"seed": self.seed, "ids": [shown.id for shown in demonstrations]},
        }
        return description, contents.hexdigest()


def _item(index: int, sample: Sample | Unreadable, demonstrations: tuple[Sample, ...]) -> Item:
    if isinstance(sample, Unreadable):
        return Item(index, sample.id, sample.id, [], broken=sample.why)
    asked = messages(sample, demonstrations)
    return Item(index, sample.id, sample.cluster, asked, tuple(sample.references), sample.extras)
