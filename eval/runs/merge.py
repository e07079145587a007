"""The shares of several hosts as one file, if nothing is missing and nothing stands twice."""

from pathlib import Path

from eval.runs.folder import SAMPLES, samples_file, shares
from eval.runs.records import Contents, Record, read, refuse_to_mix, write
from vila_jax.errors import DataError

_SHOWN = 5


def merge(folder: Path) -> int:
    """Writes `samples.jsonl` of the shares in the folder of a run, in the order of the task.

    Returns:
      The number of its samples.

    Raises:
      DataError: a share is missing or of another run, samples are missing or stand in two files.
    """
    found = shares(folder)
    counts = {n for _, n in found}
    if len(counts) != 1:
        what = "there are no shares of hosts" if not counts else f"there are shares of {sorted(counts)} hosts"
        raise DataError(what, where=str(folder), fix="Run `python -m eval run … --host i/n` with one n for all i.")
    [hosts] = counts
    if absent := [i for i in range(hosts) if (i, hosts) not in found]:
        names = ", ".join(samples_file(folder, (i, hosts)).name for i in absent)
        raise DataError(f"{names} is missing", where=str(folder), fix="Run this host, and copy its file here.")
    contents = [_whole(found[i, hosts]) for i in range(hosts)]
    first = contents[0]
    records: dict[int, Record] = {}
    for i, own in enumerate(contents):
        refuse_to_mix(first.header, {**own.header, "host": first.header["host"]}, str(found[i, hosts]))
        if twice := sorted(records.keys() & own.records.keys()):
            what = f"{len(twice)} samples stand in two files: {_shown([own.records[index].id for index in twice])}"
            raise DataError(what, where=str(found[i, hosts]), fix="Every host needs its own --host.")
        records |= own.records
    expected = first.header["task"]["n_expected"]
    if gaps := [index for index in range(expected) if index not in records]:
        hosts_of = sorted({index % hosts for index in gaps})
        what = f"{len(gaps)} of {expected} samples are missing: numbers {_shown(gaps)}, of hosts {_shown(hosts_of)}"
        damage = [line for own in contents for line in own.damage]
        fix = "Run these hosts again: they go on where they stopped."
        raise DataError("; ".join((what, *damage)), where=str(folder), fix=fix)
    sessions = [session for own in contents for session in own.sessions]
    header = {**first.header, "host": [0, 1]}
    write(folder / SAMPLES, header, sessions, [records[index] for index in sorted(records)])
    return len(records)


def _whole(path: Path) -> Contents:
    contents = read(path)
    if contents is None:
        raise DataError("it is empty", where=str(path), fix="Run this host again.")
    return contents


def _shown(values: list) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
