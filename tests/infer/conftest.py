"""One tiny LLaVA-NeXT for the whole room, so that its programs are compiled once."""

import pytest

import vila_jax
from tests.infer.checkpoints import Written, write


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Written:
    """Tiles of 28 pixels, 16 patches each; up to 4 of them beside the overview; 2 of 6 heads hold keys and values."""
    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    text = {"head_dim": 8, "max_position_embeddings": 200}
    return write(tmp_path_factory.mktemp("next"), next_=True, image_grid_pinpoints=pinpoints, text_args=text)


@pytest.fixture(scope="session")
def model(written) -> vila_jax.Model:
    return vila_jax.from_pretrained(written.folder, dtype="float32")
