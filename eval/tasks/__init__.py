"""Benchmarks, read from their published files or from the Hub's rows, and asked as LLaVA and VILA asked them."""

import difflib

from eval.tasks.captions import COCO, FLICKR8K, FLICKR8K_RETRIEVAL, FLICKR30K
from eval.tasks.choices import MMBENCH, SCIENCEQA
from eval.tasks.documents import CHARTQA, DOCVQA, OCRBENCH
from eval.tasks.files import Unreadable
from eval.tasks.gqa import GQA
from eval.tasks.mmvet import MMVET
from eval.tasks.sample import STYLES, Picture, Sample, Task, messages
from eval.tasks.scenes import SCENES
from eval.tasks.textvqa import TEXTVQA, TEXTVQA_OCR
from eval.tasks.vqa import OKVQA, VQAV2
from eval.tasks.yes_no import MME, POPE
from vila_jax.errors import ConfigError

TASKS: dict[str, Task] = {
    own.name: own
    for own in (
        *(VQAV2, GQA, TEXTVQA, TEXTVQA_OCR, OKVQA, MMBENCH, MMVET, SCIENCEQA, POPE, MME),
        *(DOCVQA, CHARTQA, OCRBENCH, COCO, FLICKR30K, FLICKR8K, FLICKR8K_RETRIEVAL, SCENES),
    )
}


def task(name: str) -> Task:
    """The task of this name.

    Raises:
      ConfigError: there is none.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    fix = f"Did you mean {near[0]}?" if near else f"One of: {', '.join(TASKS)}."
    raise ConfigError(f"there is no task {name!r}", where="task", fix=fix)


__all__ = ["STYLES", "TASKS", "Picture", "Sample", "Task", "Unreadable", "messages", "task"]
