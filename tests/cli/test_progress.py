"""Progress is for terminals alone, and leaves nothing behind."""

import io

import pytest
from rich.console import Console

from vila_jax.cli import terminal
from vila_jax.cli.progress import Progress


@pytest.fixture
def screen(monkeypatch):
    """What stderr gets, as if it were a terminal."""
    written = io.StringIO()
    monkeypatch.setattr(terminal, "stderr", lambda: Console(file=written, force_terminal=True, width=120))
    return written


def test_weights_phases_and_programs_are_named(screen):
    with Progress() as progress:
        progress.on_tensor("language_model.model.embed_tokens.weight", 1_000_000, 4_000_000)
        progress.on_tensor("vision_tower.vision_model.post_layernorm.weight", 4_000_000, 4_000_000)
        progress.on_compile("prefill")
        progress.phase("generating [now]")
    shown = screen.getvalue()
    for text in ("embed_tokens.weight", "4.0/4.0 MB", "compiling prefill", "generating [now]"):
        assert text in shown


def test_the_line_is_erased_at_the_end(screen):
    with Progress() as progress:
        progress.phase("working")
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K")  # one line up, erase it


def test_once_muted_nothing_more_is_shown(screen):
    with Progress() as progress:
        progress.phase("first")
        progress.mute()
        before = screen.getvalue()
        progress.on_compile("decode")
        progress.on_tensor("x", 1, 2)
        assert screen.getvalue() == before


@pytest.mark.parametrize("force_terminal", [False, True])
def test_silent_where_no_one_looks(monkeypatch, force_terminal):
    written = io.StringIO()
    monkeypatch.setattr(terminal, "stderr", lambda: Console(file=written, force_terminal=force_terminal))
    with Progress(enabled=not force_terminal) as progress:
        progress.phase("working")
        progress.on_tensor("x", 1, 2)
        progress.on_compile("prefill")
    assert written.getvalue() == ""


def test_a_model_cannot_command_the_terminal(monkeypatch):
    dangerous = "a\x1b]0;title\x07b\tc\n\x9bd"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = terminal.printable(dangerous)
    assert shown == "a\ufffd]0;title\ufffdb\tc\n\ufffdd"
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert terminal.printable(dangerous) == dangerous
