"""Talks with a model about pictures, turn by turn; each turn reads only what is new.

Every line of stdin is a turn, but for these:

  /image FILE   shows a picture with the next turn
  /new          begins a new conversation
  /quit         ends, as does the end of the input
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vila_jax.cli import arguments, exits, terminal
from vila_jax.cli.ask import closing_line, print_stream
from vila_jax.cli.loading import load_model
from vila_jax.cli.progress import Progress
from vila_jax.errors import PromptError, VilaError

if TYPE_CHECKING:
    from vila_jax.chat import Chat
    from vila_jax.model import Model

SUMMARY = "talk with a model about pictures"

_PICTURES = 2**28  # bytes; for those that are shown again after /new
_WORDS = "/image FILE, /new or /quit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `vila-jax chat`."""
    arguments.add_model(parser)
    parser.add_argument(
        "--image", metavar="F", action="append", default=[], help="a picture shown with the first turn; repeat it"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first (default: the checkpoint's own)")
    parser.add_argument("--style", metavar="NAME", help="conversation style (default: the one of the checkpoint)")
    parser.add_argument("--budget", metavar="SPEC", help="visual-token budget, e.g. hired:0.2 (default: all tokens)")
    arguments.add_generation(parser)
    arguments.add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Talks until the input ends."""
    from vila_jax.cli.cache import enable_compile_cache
    from vila_jax.vision.open import open_image

    images = [open_image(source) for source in args.image]  # before gigabytes of weights are read
    enable_compile_cache()
    with Progress() as progress:
        model = load_model(args, progress, budget=args.budget, style=args.style, image_cache=_PICTURES)
    conversation = _Conversation(model, args, images)
    while (line := _next_line()) is not None:
        try:
            if not conversation.take(line.strip()):
                break
        except VilaError as error:  # of one turn; the conversation goes on
            message, fix, _ = exits.explain(error)
            terminal.show_error(message, fix)
    return 0


class _Conversation:
    """What the lines do."""

    def __init__(self, model: "Model", args: argparse.Namespace, images: list[Any]):
        self._model, self._args, self._images = model, args, images
        self._chat = self._new()

    def _new(self) -> "Chat":
        return self._model.chat(self._args.system, **arguments.generation(self._args))

    def take(self, line: str) -> bool:
        """Follows one line; False ends the conversation."""
        from vila_jax.vision.open import open_image

        word, _, rest = line.partition(" ")
        match word:
            case "":
                pass
            case "/quit":
                return False
            case "/new":
                self._chat, self._images = self._new(), []
            case "/image":
                self._images.append(open_image(rest.strip()))
            case _ if word.startswith("/"):
                raise PromptError(f"there is no {word}", where="chat", fix=f"Write {_WORDS}, or something to say.")
            case _:
                self._say(line)
        return True

    def _say(self, line: str) -> None:
        with Progress() as progress:
            pieces = self._chat.stream(line, self._images)
            self._images = []
            print_stream(pieces, progress)
        assert self._chat.last is not None
        terminal.stderr().print(closing_line(self._chat.last), style="dim", soft_wrap=True)


def _next_line() -> str | None:
    """A line of the input, asked for at a terminal; None at its end."""
    if sys.stdin.isatty():
        terminal.stderr().print("> ", end="", style="bold")
    return sys.stdin.readline() or None
