"""The model that a command line names."""

import argparse
from typing import TYPE_CHECKING, Any

from vila_jax.cli.progress import Progress

if TYPE_CHECKING:
    from vila_jax.model import Model


def load_model(args: argparse.Namespace, progress: Progress, *, path: str | None = None, **options: Any) -> "Model":
    """Loads MODEL as --dtype, --revision and --era say, showing how far it is.

    Of commands that have them, as --quantize and --fuse say, too.

    Args:
      path: what MODEL stands for, where it is a name of ours.
      options: further ones of `vila_jax.from_pretrained`.
    """
    from vila_jax.model import from_pretrained

    named: dict[str, Any] = {name: getattr(args, name) for name in ("dtype", "revision", "era")}
    named |= {"quantize": getattr(args, "quantize", None), "fuse": getattr(args, "fuse", False)}
    chosen = args.model if path is None else path
    shown = {"on_tensor": progress.on_tensor, "on_compile": progress.on_compile}
    return from_pretrained(chosen, **(shown | named | options))
