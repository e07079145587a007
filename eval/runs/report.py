"""One page about all runs below a folder: a self-contained HTML file, with the charts and failures inside."""

import base64
import html
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.runs.chart import draw_chart
from eval.runs.failures import FOLDER
from eval.runs.folder import find_runs, replace
from eval.runs.rows import Row, difference, percent, rows, tokens, warnings

_STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
_SHOWN = 200  # failed samples that are listed; all are in result.json


def write_report(folder: Path) -> Path:
    """Writes `report.html` and a chart for every task and number of shots; returns the path of the page.

    Raises:
      DataError: there are no runs, or shares of hosts that are not merged.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows(find_runs(folder)):
        groups.setdefault(row.name, []).append(row)
    parts = [_section(name, own, folder) for name, own in groups.items()]
    model = ", ".join(dict.fromkeys(row.run.header["model"]["model"] for own in groups.values() for row in own))
    page = folder / "report.html"
    title = f"Evaluation of {model}"
    replace(page, _page(title, [_tag("h1", title), *parts]))
    return page


def _section(name: str, own: Sequence[Row], folder: Path) -> str:
    task, metric = own[0].run.header["task"], own[0].result["metric"]
    which = f"{'The first' if task['limit'] is not None else 'All'} {task['n_expected']} samples of {task['split']}"
    about = f"Metric: {metric['name']}, variant {metric['variant']}, {metric['headline']}. {which}; prompts of "
    about += f"{task['style']}. Intervals of 95 %: {metric['method'] or 'none'}."
    if task["shots"]:
        about += f" Demonstrations (seed {task['demonstrations']['seed']}): {', '.join(task['demonstrations']['ids'])}."
    return _tag(
        "section",
        _tag("h2", name),
        _tag("p", html.escape(about)),
        _warnings(own),
        _results(own),
        _chart(name, own, folder),
        _numbers(own),
        _failed(own),
        _pictures(own),
        _circumstances(own),
    )


def _results(own: Sequence[Row]) -> str:
    head = ["budget", "value", "95 %", "less all tokens (95 %)", "p", "visual tokens", "of", "ms", "samples/s"]
    head += ["done", "failed", "missing"]
    lines = []
    for row in own:
        metric, number, seconds = row.result["metric"], row.result["n"], row.result["seconds"]
        full = row.result["tokens"]["visual_full"]
        p_value = row.against.p_value if row.against is not None else None
        lines.append(
            (
                row.budget,
                percent(metric, "value"),
                f"{percent(metric, 'low')} to {percent(metric, 'high')}",
                difference(row),
                "" if p_value is None else f"{p_value:.2g}",
                tokens(row.result),
                "—" if full is None else f"{full['mean']:.0f}",
                "—" if row.milliseconds is None else f"{row.milliseconds:.1f}",
                f"{seconds['samples_per_second']:.1f}" if seconds.get("samples_per_second") else "—",
                number["done"],
                number["failed"],
                number["missing"],
            )
        )
    note = "Milliseconds are the device's for a sample, median; the samples of a batch share its time."
    return _table(head, lines) + _tag("p", html.escape(note), kind="note")


def _warnings(own: Sequence[Row]) -> str:
    found = warnings(own)
    return _tag("ul", *(_tag("li", html.escape(text)) for text in found), kind="warnings") if found else ""


def _chart(name: str, own: Sequence[Row], folder: Path) -> str:
    """The chart of the runs that have a value; nothing where there is one run, or no matplotlib."""
    drawn = [row for row in own if row.result["metric"]["value"] is not None and row.visual_tokens is not None]
    if len(drawn) < 2 or importlib.util.find_spec("matplotlib") is None:
        return ""
    path = folder / f"accuracy_{name.replace(', ', '_').replace(' ', '_')}.png"
    note = f"{own[0].result['metric']['n']} samples; bars: 95 % intervals"
    draw_chart(drawn, path, title=f"{own[0].run.header['model']['model']}: {name}", note=note)
    return _image(path, f"{name}: value against visual tokens and milliseconds")


def _numbers(own: Sequence[Row]) -> str:
    """What else the metric tells, a column for each run."""
    names = list(dict.fromkeys(name for row in own for name in row.result["metric"]["numbers"]))
    if len(names) < 2:
        return ""
    lines = []
    for name in names:
        values = [row.result["metric"]["numbers"].get(name) for row in own]
        lines.append((name, *("—" if value is None else f"{value:.4g}" for value in values)))
    return _tag("details", _tag("summary", "all numbers"), _table(("", *(row.budget for row in own)), lines))


def _failed(own: Sequence[Row]) -> str:
    lines = [(row.budget, one["id"], one["kind"], one["message"]) for row in own for one in row.result["failures"]]
    if not lines:
        return ""
    summary = f"{len(lines)} failed samples, which count as wrong"
    summary += f"; the first {_SHOWN}" if len(lines) > _SHOWN else ""
    table = _table(("budget", "id", "error", "message"), lines[:_SHOWN])
    return _tag("details", _tag("summary", summary), table, more=" open")


def _pictures(own: Sequence[Row]) -> str:
    """Wrong answers with the tokens that were kept."""
    figures = []
    for row in own:
        place = row.run.folder / FOLDER
        path = place / "failures.json"
        for note in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
            more = " All tokens: right." if note["right_in_baseline"] and row.against is not None else ""
            told = (
                f"{_tag('b', html.escape(row.budget))}, sample {html.escape(note['id'])}: "
                f"{html.escape(note['question'])}<br>Answer: {html.escape(note['answer'] or '(nothing)')}. "
                f"Right: {html.escape(' / '.join(dict.fromkeys(note['references'])))}.{more}"
            )
            shown = _image(place / note["picture"], note["question"]) if note["picture"] else ""
            figures.append(_tag("figure", shown, _tag("figcaption", told)))
    return _tag("h3", "Wrong answers") + _tag("div", *figures, kind="gallery") if figures else ""


def _circumstances(own: Sequence[Row]) -> str:
    facts: dict[str, Any] = {row.budget: [row.run.header, *row.run.sessions] for row in own}
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    return _tag("details", _tag("summary", "how this was run"), _tag("pre", html.escape(text)))


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    top = _tag("tr", *(_tag("th", html.escape(name)) for name in head))
    body = (_tag("tr", *(_tag("td", html.escape(str(cell))) for cell in line)) for line in lines)
    return _tag("div", _tag("table", _tag("thead", top), _tag("tbody", *body)), kind="wide")


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _tag(name: str, *content: str, kind: str = "", more: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    return f"<{name}{attributes}{more}>{''.join(content)}</{name}>"


def _page(title: str, body: Iterable[str]) -> str:
    """The content is escaped where it is put together."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width">'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
