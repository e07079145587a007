"""What a person sees: a bar at a terminal, lines elsewhere, with the same facts."""

import io

from rich.console import Console

from train.metrics.display import Bar, Lines, display, left
from train.metrics.rows import Row

ROW = Row(
    1200,
    {"loss": 1.23456, "accuracy": 0.612, "learning_rate/decoder": 1e-4, "learning_rate/tower": 1e-5}
    | {"tokens_per_second": 10300.0, "step_seconds": 0.41, "data_wait": 0.012, "mfu": 0.456}
    | {"skipped": 2, "bad/broken": 1203, "bad/empty": 1},
)
FACTS = "loss 1.235  accuracy 61.2 %  learning rate 1e-05/0.0001  10.3 k tokens/s  410 ms/step  wait 1.2 %  MFU 45.6 %"


def shown(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=250, color_system=None, markup=False, highlight=False)
    writer = display("vila_7b/align", 5000, done=1100, console=console)
    assert isinstance(writer, Bar if terminal else Lines)
    writer.advance(1200, 3725.2)
    writer.write(ROW)
    writer.note(1201, "skipped: loss [nan]")
    writer.close()
    return out.getvalue()


def test_lines():
    first, second = shown(terminal=False).splitlines()
    assert first == f"[vila_7b/align] 1,200/5,000  {FACTS}  2 skipped  1,204 bad  1:02:05 left"
    assert second == "[vila_7b/align] step 1,201: skipped: loss [nan]"


def test_a_bar():
    text = shown(terminal=True)
    assert "step 1,201: skipped: loss [nan]" in text
    last = next(line for line in reversed(text.splitlines()) if "vila_7b/align" in line)
    assert f"1,200/5,000  {FACTS}  2 skipped  1,204 bad  1:02:05 left" in last


def test_unknown_time_is_not_told():
    assert left(None) == left(float("inf")) == "" and left(90061) == "1 day, 1:01:01 left"
