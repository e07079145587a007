"""`vila-jax`: finds the command, runs it, and turns whatever goes wrong into one message and an exit code."""

import argparse
import contextlib
import os
import sys
import warnings
from types import ModuleType
from typing import NoReturn

import vila_jax
from vila_jax.cli import ask, bench, chat, convert, demo, doctor, exits, inspect, prune, terminal, tokens, warmup
from vila_jax.heap import collect_seldom, keep_freed_memory

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "ask": ask,
    "chat": chat,
    "inspect": inspect,
    "tokens": tokens,
    "convert": convert,
    "prune": prune,
    "bench": bench,
    "warmup": warmup,
    "doctor": doctor,
}

_DESCRIPTION = "Vision-language models in JAX, with visual tokens as a static budget."
_EXAMPLES = """\
examples:
  vila-jax demo
  vila-jax ask llava-hf/llava-1.5-7b-hf --image photo.jpg --prompt "What is this?" --budget hired:0.2
  vila-jax tokens llava-hf/llava-v1.6-vicuna-7b-hf --image photo.jpg --budget hired:0.2 --out overlay.png
  vila-jax inspect llava-hf/llava-1.5-7b-hf
"""
_ENVIRONMENT = f"""\
environment:
  VILA_JAX_CACHE        folder of compiled programs, or 'off' (default: $XDG_CACHE_HOME/vila_jax/xla)
  {exits.TRACEBACK_VARIABLE}    1 shows the traceback of an error
  NO_COLOR              no colours
"""


def entry() -> NoReturn:
    """What `vila-jax` starts: `main`, with what is settled for a whole process.

    It ends at once. Python would first take all modules and programs apart, for a quarter of a second, and wait for
    threads that compile what nobody will run; no command leaves anything to functions that are called at the end.
    """
    keep_freed_memory()
    collect_seldom()
    sys.setswitchinterval(0.0005)  # threads that read weights need not wait for the one that traces
    code = main()
    with contextlib.suppress(OSError):  # nobody reads any longer
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code; `argv` is without the name of the program."""
    terminal.forgive_encoding()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = terminal.show_warning
            code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return exits.INTERRUPTED
    except BrokenPipeError:
        # What is still in the buffer would be written, and fail again, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.BROKEN_PIPE
    except Exception as error:
        if os.environ.get(exits.TRACEBACK_VARIABLE, "0") not in ("", "0"):
            raise
        message, fix, code = exits.explain(error)
        terminal.show_error(message, fix)
    return code


def _run(argv: list[str] | None) -> int:
    parser, commands = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help, --version, wrong use
        return stop.code if isinstance(stop.code, int) else exits.USAGE
    args.words = sys.argv[1:] if argv is None else argv  # for results that say how they were made
    if args.command is None:
        parser.print_help(sys.stderr)
        return exits.USAGE
    if args.command == "help":
        (parser if args.topic is None else commands[args.topic]).print_help()
        return 0
    return COMMANDS[args.command].run(args)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of everything, and the parser of each command."""
    codes = "".join(f"  {code:<5} {meaning}\n" for code, meaning in exits.EXIT_CODES.items())
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="vila-jax",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\nexit codes:\n{codes}\n{_ENVIRONMENT}",
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"vila-jax {vila_jax.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands = {}
    for name, module in COMMANDS.items():
        command = subparsers.add_parser(
            name, help=module.SUMMARY, description=module.__doc__, formatter_class=raw, allow_abbrev=False
        )
        module.add_arguments(command)
        commands[name] = command
    topic = subparsers.add_parser("help", help="show the help of a command")
    topic.add_argument("topic", nargs="?", choices=COMMANDS, metavar="COMMAND")
    return parser, commands


if __name__ == "__main__":
    entry()
