"""`python -m train prepare FORM SOURCE --out FOLDER`: a published data set into ArrayRecord shards with an index.

Every picture is decoded once, so that training does not meet a broken one. What is left out is counted by reason, and
named in FOLDER/index.json.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from train.data.readers import READERS
from train.data.records import BadSample, Record
from train.data.store import SHARD_BYTES, Report, write_shards

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
    parser.add_argument("--out", type=Path, required=True, help="new folder of the shards")
    parser.add_argument("--shard-mib", type=int, default=SHARD_BYTES // 2**20, help="size at which a shard ends")
    args = parser.parse_args(argv)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        records = _watched(READERS[args.form](args.source, args.images), progress)
        report = write_shards(records, args.out, source=str(args.source), shard_bytes=args.shard_mib * 2**20)
    console.print(_table(report))
    console.print(f"written to {args.out}", soft_wrap=True)


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
