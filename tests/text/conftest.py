import pathlib

import pytest

from vila_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def folders(golden) -> pathlib.Path:
    """Folder that holds the folders of the golden tokenizers: hired, llama, qwen2."""
    return golden / "text"


@pytest.fixture(scope="session")
def tokenizers_by_name(folders) -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_folder(folders / name) for name in ("hired", "llama", "qwen2")}
