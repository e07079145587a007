"""Errors that a user of `vila_jax` can meet.

Every message has the same three parts: *what* is wrong, *where* it was found, and *how to mend it*.
The command line prints the message alone, without a traceback, and exits with the class's `exit_code`.
"""


class VilaError(Exception):
    """Base class of all errors raised on purpose by `vila_jax`.

    Args:
      what: one sentence that says what is wrong, with the values expected and got.
      where: the file, key, argument or tensor concerned.
      fix: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        message = what if where is None else f"{where}: {what}"
        if fix is not None:
            message = f"{message.rstrip('.')}. {fix}"
        super().__init__(message)


class ConfigError(VilaError):
    """A configuration value that is missing, unknown or contradictory."""

    exit_code = 3


class CheckpointError(VilaError):
    """A checkpoint whose files are missing, damaged, unsafe or do not fit the model."""

    exit_code = 4


class ImageError(VilaError):
    """A picture that cannot be read, or that is larger than the configured limit."""

    exit_code = 5


class ImageSizeError(ImageError):
    """A picture with more pixels or bytes than the configured limit."""


class PromptError(VilaError):
    """A prompt that does not fit the model: placeholders, roles, templates, length."""

    exit_code = 6


class ContextLengthError(PromptError):
    """Prompt, visual tokens and requested new tokens exceed the model's context."""


class BudgetError(VilaError):
    """A visual-token budget that cannot be parsed or cannot be met."""

    exit_code = 7


class QuantizationError(VilaError):
    """Quantisation that cannot be parsed, or that does not pay on this device."""

    exit_code = 13


class HubError(VilaError):
    """A model that cannot be found on, or fetched from, the Hugging Face Hub."""

    exit_code = 8


class DataError(VilaError):
    """Training data of which more cannot be used than a run allows."""

    exit_code = 10


class TrainingDiverged(VilaError):
    """A run of which too many steps in a row had to be skipped."""

    exit_code = 11
