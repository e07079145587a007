"""The scores of published benchmarks, a page for each family, in plain Python.

One name of a benchmark hides several metrics: references disagree on whether "Yes." is an answer. A metric therefore
has variants by name, and every result is to say which was used.
"""

import difflib

from eval.metrics.anls import ANLS
from eval.metrics.captions import CAPTIONS
from eval.metrics.exact import EXACT_MATCH, GQA
from eval.metrics.metric import Answered, Mark, Metric
from eval.metrics.mmbench import MMBENCH
from eval.metrics.mme import MME
from eval.metrics.mmvet import MMVET
from eval.metrics.ocrbench import OCRBENCH
from eval.metrics.pope import POPE
from eval.metrics.relaxed import RELAXED
from eval.metrics.retrieval import RETRIEVAL
from eval.metrics.scienceqa import SCIENCEQA
from eval.metrics.vqa import TEXTVQA, VQA
from vila_jax.errors import ConfigError

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(VQA, TEXTVQA, GQA, EXACT_MATCH, ANLS, RELAXED, POPE, MME),
        *(MMBENCH, SCIENCEQA, OCRBENCH, MMVET, CAPTIONS, RETRIEVAL),
    )
}


def metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
      ConfigError: there is none.
    """
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name, METRICS, n=1)
    fix = f"Did you mean {near[0]}?" if near else f"One of: {', '.join(METRICS)}."
    raise ConfigError(f"there is no metric {name!r}", where="metric", fix=fix)


__all__ = ["METRICS", "Answered", "Mark", "Metric", "metric"]
