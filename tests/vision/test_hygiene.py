"""Preparing a picture imports neither torch nor TensorFlow, though torch is installed where the tests run."""

import importlib.util
import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
from vila_jax.vision.open import open_image
from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor

for model_type in ("llava", "llava_next"):
    config = {"size": 56, "crop_size": 56, "image_grid_pinpoints": [[112, 112]]}
    preprocess = Preprocessor(PreprocessConfig.from_hf(config, model_type=model_type), 14)
    preprocess(open_image(np.zeros((30, 40, 4), np.uint8))).geometry.order()
try:
    open_image("no-such-picture.png")
except Exception as error:
    assert type(error).__name__ == "ImageError", error
print(sorted({"torch", "torchvision", "tensorflow"} & set(sys.modules)))
"""


def test_preprocessing_imports_no_other_framework():
    assert importlib.util.find_spec("torch") is not None
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
