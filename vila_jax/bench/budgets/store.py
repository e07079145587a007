"""A bench that goes on where it stopped: rows are written as they are finished, and read again.

Times are compared with one another, so they count only when all come from one run: where one row lacks its cost, all
are measured again. Exams do not depend on the machine's mood, and are kept row by row.
"""

import json
import pathlib
from collections.abc import Sequence

from vila_jax.bench.budgets.rows import Bench, Case, Row
from vila_jax.errors import VilaError


class Store:
    """The file of a bench.

    Rows that it holds stay, also those of cases that are not asked for this time; they come last.

    Args:
      path: of the JSON file; None keeps nothing.
      bench: the settings and kinds of this run; its rows are filled in.
      cases: what is asked for.

    Raises:
      VilaError: the file was made with other settings, or cannot be read.
    """

    def __init__(self, path: pathlib.Path | None, bench: Bench, cases: Sequence[Case]):
        self._path, self._bench = path, bench
        known = {row.case.name: row for row in _read(path, bench)}
        asked = [known.pop(case.name, Row(case)) for case in cases]
        bench.rows[:] = [*asked, *known.values()]

    @property
    def lacks_costs(self) -> bool:
        """Whether anything must be timed, and hence everything."""
        return any(row.cost is None and row.refused is None for row in self._bench.rows)

    def put(self, *rows: Row) -> None:
        """Takes finished rows in, in place of what was known of their cases, and writes the file."""
        new = {row.case: row for row in rows}
        self._bench.rows[:] = [new.get(row.case, row) for row in self._bench.rows]
        if self._path is not None:
            part = self._path.with_name(f"{self._path.name}.part")
            part.write_text(json.dumps(self._bench.to_json(), indent=1) + "\n", encoding="utf-8")
            part.replace(self._path)


def _read(path: pathlib.Path | None, bench: Bench) -> list[Row]:
    if path is None or not path.exists():
        return []
    fix = f"Remove it, or give another folder than {path.parent}."
    try:
        found = Bench.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise VilaError("this is no result of `vila-jax bench budgets`", where=str(path), fix=fix) from error
    changed = [name for name in bench.settings if found.settings.get(name) != bench.settings[name]]
    if changed or found.kinds != bench.kinds:
        named = " and ".join(changed) or "exam"
        raise VilaError(f"its rows were measured with another {named}", where=str(path), fix=fix)
    return found.rows
