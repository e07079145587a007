"""What is done with a sample before the device sees it: its key, its prompt, its pictures, and its shapes."""

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from eval.runs.identity import Generation
from eval.runs.items import Item
from eval.runs.records import Record
from vila_jax.batches import Bucket, bucket_of
from vila_jax.budgets import Budget
from vila_jax.hf.identity import fingerprint
from vila_jax.infer.layout import Request
from vila_jax.model import Model
from vila_jax.text.messages import collect_images


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A sample that is ready for the device.

    Attributes:
      record: what is known of it so far.
      bucket: samples of one bucket make batches of one shape.
    """

    record: Record
    request: Request
    bucket: Bucket


class Preparer:
    """Prepares samples of one run; safe to be used by several threads.

    Args:
      run_id: of the header: stands for model, budget and all else that is the same for all samples.
      before: the records of earlier sessions. A sample whose key is among them is not asked again, unless it failed.
    """

    def __init__(
        self, model: Model, budget: Budget | None, generation: Generation, run_id: str, before: Mapping[int, Record]
    ):
        self._model, self._budget, self._generation = model, budget, generation
        self._run_id, self._before = run_id, before

    def __call__(self, item: Item) -> Prepared | Record | None:
        """The prepared sample; the record of one that failed already; None for one that is done."""
        start = time.perf_counter()
        record = Record(
            item.index,
            item.id,
            item.cluster,
            question=item.question,
            references=item.references,
            extras=item.extras,
        )
        try:
            if item.broken is not None:
                return dataclasses.replace(record, error={"kind": "Unreadable", "message": item.broken})
            sources = collect_images(item.messages)
            prompt = self._model.form.render(item.messages, self._model.style, [None] * len(sources))
            known = [item.id, prompt, item.references, dict(item.extras)]
            key = fingerprint([self._run_id, *known, [_digest(source) for source in sources]])
            record = dataclasses.replace(record, key=key, prompt=prompt)
            done = self._before.get(item.index)
            if done is not None and done.error is None and done.key == key:
                return None
            request = self._model.request(messages=item.messages, budget=self._budget)
            bucket = bucket_of(self._model.engine.planner, request, self._budget, self._generation.max_new_tokens)
            seconds = {"preprocess": time.perf_counter() - start}
            return Prepared(dataclasses.replace(record, seconds=seconds), request, bucket)
        except Exception as error:
            return failed(record, error)


def failed(record: Record, error: Exception) -> Record:
    """The record of a sample that an error befell."""
    return dataclasses.replace(record, error={"kind": type(error).__name__, "message": str(error)})


def _digest(source: Any) -> str:
    """A hash of a picture's contents."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, Path):
        return hashlib.sha256(source.read_bytes()).hexdigest()
    assert isinstance(source, Image.Image)
    found = hashlib.sha256(f"{source.mode} {source.size} ".encode())
    found.update(source.tobytes())
    return found.hexdigest()
