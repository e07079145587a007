"""Real photos, from the packages that ship them."""

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photos() -> dict[str, Image.Image]:
    """RGB pictures: china and flower (640 x 427, the second here upright), astronaut (512 x 512)."""
    import skimage.data
    import sklearn.datasets

    china, flower = sklearn.datasets.load_sample_images().images
    return {
        "china": Image.fromarray(china),
        "flower": Image.fromarray(flower).transpose(Image.Transpose.ROTATE_90),
        "astronaut": Image.fromarray(skimage.data.astronaut()),
    }
