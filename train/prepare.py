"""`python -m train prepare FORM SOURCE --out FOLDER`: a published data set into ArrayRecord shards with an index.

Every picture is decoded once, so that training does not meet a broken one. What is left out is counted by reason, and
named in FOLDER/index.json.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from train.data.readers import READERS
from train.data.records import BadSample, Record
from train.data.store import SHARD_BYTES, Report, write_shards
from vila_jax.errors import ConfigError

console = Console(stderr=True, markup=False, highlight=False)


def main(argv: list[str]) -> None:
    """Prepares a data set.

    Raises:
      VilaError: the source cannot be read, nothing of it is left, or FOLDER is taken.
    """
    parser = argparse.ArgumentParser(prog="python -m train prepare", description=__doc__)
    parser.add_argument("form", choices=READERS, help="the form in which it is published")
    parser.add_argument("source", type=Path, help="its file, or the folder of its shards")
    parser.add_argument("--images", type=Path, help="folder of the pictures, where it is not beside the files")
    parser.add_argument("--pick", type=int, metavar="N", help="take only N samples, evenly spread over the source")
    parser.add_argument("--out", type=Path, required=True, help="new folder of the shards")
    parser.add_argument("--shard-mib", type=int, default=SHARD_BYTES // 2**20, help="size at which a shard ends")
    args = parser.parse_args(argv)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        records = READERS[args.form](args.source, args.images)
        if args.pick is not None:
            total = sum(1 for _ in READERS[args.form](args.source, args.images))
            records = picked(records, total, args.pick)
        records = _watched(records, progress)
        report = write_shards(records, args.out, source=str(args.source), shard_bytes=args.shard_mib * 2**20)
    console.print(_table(report))
    console.print(f"written to {args.out}", soft_wrap=True)


def picked(samples: Iterator[Record | BadSample], total: int, count: int) -> Iterator[Record | BadSample]:
    """`count` of `total` samples, as VILA takes its million of FLAN: at the whole parts of even steps from the first
    to the last.

    Raises:
      ConfigError: there are not so many.
    """
    if not 0 < count <= total:
        raise ConfigError(f"got {count} of {total:,} samples", where="--pick", fix=f"Use 1 to {total:,}.")
    chosen = set(np.linspace(0, total - 1, count, dtype=int).tolist())
    return (sample for index, sample in enumerate(samples) if index in chosen)


def _watched(records: Iterator[Record | BadSample], progress: Progress) -> Iterator[Record | BadSample]:
    task = progress.add_task("0 records")
    for number, record in enumerate(records, start=1):
        progress.update(task, description=f"{number:,} records")
        yield record


def _table(report: Report) -> Table:
    table = Table("", "", show_header=False)
    table.add_row("records", f"{report.records:,}")
    table.add_row("pictures", f"{report.pictures:,}")
    table.add_row("MiB", f"{report.bytes / 2**20:,.1f}")
    for reason, count in report.bad.most_common():
        table.add_row(f"left out: {reason}", f"{count:,}")
    return table
