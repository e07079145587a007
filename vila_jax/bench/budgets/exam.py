"""Accuracy under budgets: every case answers the same questions of an exam."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from vila_jax.bench.budgets.rows import Bench, Marks, Row
from vila_jax.bench.budgets.store import Store
from vila_jax.errors import VilaError
from vila_jax.exam.examiner import Examiner
from vila_jax.exam.items import Item, Reply


def examine(
    examiner: Examiner,
    items: Sequence[Item],
    bench: Bench,
    store: Store,
    on_step: Callable[[str], None] = lambda text: None,
) -> None:
    """Fills in the marks of all rows that are not refused and have none yet.

    A budget that is met for some pictures and refused for others is a refused row.
    """
    for number, row in enumerate(list(bench.rows), start=1):
        if row.refused is not None or row.marks is not None:
            continue
        on_step(f"exam {number} of {len(bench.rows)}: {row.case.name}")
        try:
            replies = examiner.budgeted(items, row.case.budget)
        except VilaError as error:
            store.put(Row(row.case, refused=str(error)))
        else:
            store.put(dataclasses.replace(row, marks=_marks(replies)))


def _marks(replies: Sequence[Reply]) -> Marks:
    tokens = [reply.tokens for reply in replies]
    right = "".join("1" if reply.right else "0" for reply in replies)
    return Marks(right, statistics.fmean(tokens), max(tokens))
