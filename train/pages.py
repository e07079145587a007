"""Pages of recipes: found, changed by a command line, checked, shown, and kept beside a run.

    configs/vila_7b/align.py    a page: `STAGE = Stage(...)`
    configs/vila_7b             several, one after another: `STAGES = (...)` in its `__init__.py`
    vila_7b/align               the same page, by its name in `configs/`

What changes a page on the command line is described in `train/overrides.py`.
"""

import json
import runpy
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from train.checks import check
from train.overrides import keys, override
from train.recipe import Stage
from train.typed import built, nearest, plain
from vila_jax.errors import ConfigError, VilaError

CONFIGS = Path(__file__).parents[1] / "configs"
_NONE = "none"


def load(config: str, words: Sequence[str] = ()) -> Stage:
    """The stage of one page, changed by words of a command line.

    Raises:
      ConfigError, BudgetError: there is no such page, it cannot be run, or the stage cannot be.
    """
    stages = load_all(config, words)
    if len(stages) > 1:
        raise ConfigError(
            f"{config} has {len(stages)} stages", fix=f"Name one: {', '.join(stage.name for stage in stages)}."
        )
    return stages[0]


def load_all(config: str, words: Sequence[str] = ()) -> list[Stage]:
    """The stages of a page, or of a folder of pages in their order; the words change each of them.

    Raises:
      See `load`.
    """
    path = _find(config)
    pages = _run(path / "__init__.py", "STAGES", tuple) if path.is_dir() else (_run(path, "STAGE", Stage),)
    stages = [override(stage, words) for stage in pages]
    for stage in stages:
        check(stage)
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError("two stages have one name", where=config, fix="Give every stage a name of its own.")
    return stages


def _find(config: str) -> Path:
    """The page or the folder that is meant."""
    for path in Path(config), CONFIGS / config, CONFIGS / f"{config}.py":
        if path.is_file() or (path / "__init__.py").is_file():
            return path
    names = [str(path.relative_to(CONFIGS).with_suffix("")) for path in sorted(CONFIGS.rglob("*.py"))]
    names = [name.removesuffix("/__init__") for name in names]
    near = nearest(str(Path(config).with_suffix("")).removeprefix(f"{CONFIGS.name}/"), names)
    fix = f"Did you mean {CONFIGS.name}/{near}?" if near else f"There are {', '.join(names)}."
    raise ConfigError(f"there is no page {config!r}", fix=fix)


def _run(path: Path, name: str, kind: type) -> Any:
    """What a page calls `name`."""
    try:
        page = runpy.run_path(str(path))
    except VilaError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise ConfigError(f"the page cannot be run: {type(error).__name__}: {error}", where=where) from error
    if not isinstance(page.get(name), kind):
        raise ConfigError(f"the page has no {name}", where=str(path), fix=f"Write {name} = {kind.__name__}(…).")
    return page[name]


def to_json(stage: Stage) -> str:
    """The whole stage as text; `from_json` reads it."""
    return json.dumps(plain(stage), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, *, where: str = "config.json") -> Stage:
    """The stage that `to_json` has written.

    Args:
      where: name of the file, for errors.

    Raises:
      ConfigError, BudgetError: it is no JSON, or not that of a stage.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"is no JSON: {error}", where=where, fix="Restore the file, or begin a new run.") from error
    try:
        stage = built(Stage, values)
    except ConfigError as error:
        raise ConfigError(
            f"{error.where}: {error.what}" if error.where else error.what, where=where, fix=error.fix
        ) from error
    check(stage)
    return stage


def show(stage: Stage, page: Stage | None = None) -> Table:
    """Everything that a stage says, for a console.

    Args:
      page: what its page says; what differs is marked, with the value of the page beside it.
    """
    table = _table(stage.name)
    written, section = dict(_lines(plain(page or stage))), ""
    for key, value in _lines(plain(stage)):
        before = section
        section, _, name = key.rpartition(".")
        if section != before:
            table.add_row(Text(section, "bold"))
        was = written.pop(key, _NONE)
        table.add_row(f"  {name}", *([Text(value)] if was == value else _changed(value, was)))
    gone = {key: was for key, was in written.items() if was != _NONE}
    if gone:
        table.add_row(Text("taken away", "bold"))
    for key, was in gone.items():
        table.add_row(f"  {key}", *_changed(_NONE, was))
    return table


def _table(title: str) -> Table:
    table = Table(title=Text(title, "bold"), title_justify="left", show_header=False, box=None, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    return table


def _changed(value: str, was: str) -> tuple[Text, Text]:
    return Text(value, "yellow"), Text(f"page: {was}", "dim")


def _lines(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys and what is shown of their values; those of no section first, long contents by their size."""
    for name, value in sorted(values.items(), key=lambda item: isinstance(item[1], dict)):
        if name == "new" and value:
            yield "new.config", f"{' '.join(value['config'].get('architectures', ['?']))}"
            yield "new.files", ", ".join(f"{file} ({len(text):,} characters)" for file, text in value["files"].items())
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", _shown(own)) for key, own in value.items())
        elif name != "name":
            yield name, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_shown, value))
    if value is None or isinstance(value, bool):
        return _NONE if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def help_of_keys() -> Table:
    """All keys that a command line can change, with their types and meanings, for a console."""
    table = _table("Keys of a stage")
    for key in keys():
        table.add_row(f"--{key.name.replace('_', '-')}", Text(key.type, "dim"), Text(key.doc))
    return table
