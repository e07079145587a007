"""Files that ship with the package."""

import pathlib


def nano() -> pathlib.Path:
    """Folder of `nano`, the embedded model: a Hugging Face checkpoint, trained by `configs/nano`."""
    return pathlib.Path(__file__).parent / "nano"
