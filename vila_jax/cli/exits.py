"""Exit codes, and what to say about an exception.

The code of each `VilaError` is an attribute of its class; the other codes are given here.
"""

from vila_jax.errors import VilaError

INTERNAL, USAGE, OUT_OF_MEMORY, INTERRUPTED, BROKEN_PIPE, STOPPED = 1, 2, 9, 130, 141, 143

EXIT_CODES = {
    0: "success",
    INTERNAL: "another error, or a defect of vila-jax",
    USAGE: "wrong use of the command line",
    3: "a configuration value that is missing, unknown or contradictory",
    4: "a checkpoint whose files are missing, damaged, unsafe or do not fit",
    5: "a picture that cannot be read, or that is too large",
    6: "a prompt that does not fit the model: placeholders, template, length",
    7: "a visual-token budget that cannot be parsed or met",
    8: "a model that cannot be found or downloaded",
    OUT_OF_MEMORY: "not enough memory on the device or the host",
    10: "training data of which more cannot be used than a run allows",
    11: "training that has diverged",
    13: "quantisation that cannot be parsed, or that does not pay on this device",
    INTERRUPTED: "interrupted (Ctrl-C)",
    BROKEN_PIPE: "the reader of the output went away",
    STOPPED: "training was asked to stop (SIGTERM, SIGUSR1): the same command goes on from its checkpoint",
}

TRACEBACK_VARIABLE = "VILA_JAX_TRACEBACK"


def explain(error: Exception) -> tuple[str, str | None, int]:
    """What to tell the user: the message, how to mend it (if known), and the exit code."""
    if isinstance(error, VilaError):
        message = error.what if error.where is None else f"{error.where}: {error.what}"
        return message, error.fix, error.exit_code
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        fix = (
            "Use a smaller --budget, fewer new tokens or --dtype bfloat16; `vila-jax inspect MODEL` shows what needs "
            "how much."
        )
        return f"out of memory: {_first_line(error)}", fix, OUT_OF_MEMORY
    fix = f"Set {TRACEBACK_VARIABLE}=1 for the traceback, and please report it."
    return f"internal error ({type(error).__name__}: {_first_line(error)})", fix, INTERNAL


def _first_line(error: Exception, length: int = 300) -> str:
    line = next(iter(str(error).strip().splitlines()), "no message")
    return line if len(line) <= length else f"{line[:length]}…"
