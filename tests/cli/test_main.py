"""Help, versions, and what becomes of exceptions."""

import pytest

import vila_jax
from vila_jax import errors
from vila_jax.cli import ask, exits
from vila_jax.cli.main import COMMANDS


def _classes(base):
    return [base, *(found for own in base.__subclasses__() for found in _classes(own))]


def _fail_with(monkeypatch, error):
    def run(args):
        raise error

    monkeypatch.setattr(ask, "run", run)
    return "ask", "MODEL", "--prompt", "hello"


def test_help_lists_commands_and_exit_codes(vila_jax_cli):
    code, out, _ = vila_jax_cli("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"\n    {name} " in out
    for number, meaning in exits.EXIT_CODES.items():
        assert f"\n  {number:<5} {meaning}\n" in out


def test_every_error_class_has_a_documented_code():
    assert {error.exit_code for error in _classes(errors.VilaError)} <= exits.EXIT_CODES.keys()


def test_codes_that_are_no_errors_of_ours_do_not_collide_with_them():
    own = {error.exit_code for error in _classes(errors.VilaError)} - {exits.INTERNAL}
    assert not own & {exits.USAGE, exits.OUT_OF_MEMORY, exits.INTERRUPTED, exits.BROKEN_PIPE}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_the_same_both_ways(vila_jax_cli, command):
    assert vila_jax_cli("help", command) == vila_jax_cli(command, "--help")


def test_version(vila_jax_cli):
    assert vila_jax_cli("--version") == (0, f"vila-jax {vila_jax.__version__}\n", "")


def test_no_command_shows_the_help_as_an_error(vila_jax_cli):
    code, out, err = vila_jax_cli()
    assert (code, out) == (2, "")
    assert err.startswith("usage: vila-jax")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["draw"], "draw"),
        (["ask", "MODEL"], "--prompt"),
        (["ask", "MODEL", "--prompt", "x", "--temperature", "-1"], "--temperature"),
        (["ask", "MODEL", "--prompt", "x", "--temperature", "warm"], "--temperature"),
        (["ask", "MODEL", "--prompt", "x", "--top-p", "1.5"], "--top-p"),
        (["ask", "MODEL", "--prompt", "x", "--top-k", "-2"], "--top-k"),
        (["ask", "MODEL", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["ask", "MODEL", "--prompt", "x", "--max-new-tokens", "ten"], "--max-new-tokens"),
        (["ask", "MODEL", "--prompt", "x", "--dtype", "int4"], "--dtype"),
        (["inspect", "MODEL", "--batch", "0"], "--batch"),
        (["tokens", "MODEL", "--image", "x.png", "--out", "y.png"], "--budget"),
        (["tokens", "MODEL", "--image", "x.png", "--budget", "hired:0.2", "--out", "y.jpg"], "--out"),
    ],
)
def test_wrong_use(vila_jax_cli, arguments, named):
    code, out, err = vila_jax_cli(*arguments)
    assert (code, out) == (2, "")
    assert named in err.splitlines()[-1]


def test_an_error_of_ours_is_one_message_with_its_code(vila_jax_cli, monkeypatch):
    error = errors.BudgetError("it is [too] large", where="budget 'x'", fix="Make it smaller.")
    code, out, err = vila_jax_cli(*_fail_with(monkeypatch, error))
    assert (code, out) == (7, "")
    assert err == "error: budget 'x': it is [too] large\n  Make it smaller.\n"


def test_a_defect_is_one_line_that_says_how_to_see_more(vila_jax_cli, monkeypatch):
    code, out, err = vila_jax_cli(*_fail_with(monkeypatch, KeyError("layers")))
    assert (code, out) == (1, "")
    assert err.startswith("error: internal error (KeyError: 'layers')\n")
    assert "VILA_JAX_TRACEBACK=1" in err
    assert "Traceback" not in err


def test_the_traceback_can_be_asked_for(vila_jax_cli, monkeypatch):
    monkeypatch.setenv("VILA_JAX_TRACEBACK", "1")
    with pytest.raises(KeyError, match="layers"):
        vila_jax_cli(*_fail_with(monkeypatch, KeyError("layers")))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.\nBFCAllocator dump follows"),
    ],
)
def test_out_of_memory(vila_jax_cli, monkeypatch, error):
    code, _, err = vila_jax_cli(*_fail_with(monkeypatch, error))
    assert code == 9
    assert err.startswith("error: out of memory")
    assert "--budget" in err
    assert "BFCAllocator" not in err


def test_interruption_is_silent(vila_jax_cli, monkeypatch):
    assert vila_jax_cli(*_fail_with(monkeypatch, KeyboardInterrupt())) == (130, "", "\n")
