"""Handwritten digits to classify: MNIST through tensorflow-datasets, or scikit-learn's scans without a network."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int

from eval.studies.output import console
from vila_jax.errors import VilaError

Source = Literal["auto", "mnist", "digits"]

_HELD_OUT = 797  # of the 1,797 scans of scikit-learn


@dataclasses.dataclass(frozen=True)
class Scans:
    """Scans of single digits, ink in [0, 1].

    Attributes:
      name: of the data set, `mnist` or `digits`.
      train, test: pictures.
      train_digits, test_digits: what they show.
    """

    name: str
    train: Float32[np.ndarray, "N h w 1"]
    train_digits: Int[np.ndarray, " N"]
    test: Float32[np.ndarray, "M h w 1"]
    test_digits: Int[np.ndarray, " M"]


def load(source: Source) -> Scans:
    """The scans; with `auto` MNIST, or those of scikit-learn where MNIST cannot be had, which is said.

    Raises:
      VilaError: the source that was asked for cannot be had.
    """
    if source == "digits":
        return digits()
    try:
        return mnist()
    except (ImportError, OSError) as error:  # not installed, or offline without a copy
        reason = (str(error).splitlines() or [""])[0]
        if source == "mnist":
            fix = "Run: pip install tensorflow-datasets, with the network at hand or a copy in ~/tensorflow_datasets."
            raise VilaError(f"MNIST cannot be read ({reason})", where="--data", fix=fix) from error
        console.print(f"scans of scikit-learn, because MNIST is not at hand: {reason}", markup=False, soft_wrap=True)
        return digits()


def mnist() -> Scans:
    """28x28 scans, 60,000 to train with and 10,000 held out (LeCun et al., 1998), without TensorFlow.

    Raises:
      ImportError: tensorflow-datasets is not installed.
      OSError: there is neither a copy nor a network.
    """
    import tensorflow_datasets as tfds

    found = []
    for split in ("train", "test"):
        rows = list(tfds.data_source("mnist", split=split))
        found.append(np.stack([row["image"] for row in rows]).astype(np.float32) / np.float32(255))
        found.append(np.array([row["label"] for row in rows], np.int64))
    return Scans("mnist", *found)


def digits() -> Scans:
    """8x8 scans, 1,000 to train with and 797 held out (Alpaydin and Kaynak, 1998).

    Raises:
      VilaError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        what = "the scans are part of scikit-learn, which is not installed"
        raise VilaError(what, fix="Run: pip install 'vila-jax[eval]'") from error
    held = load_digits()
    pictures = (held.images / 16.0).astype(np.float32)[..., None]
    order = np.random.default_rng(0).permutation(len(pictures))
    train, test = order[_HELD_OUT:], order[:_HELD_OUT]
    return Scans("digits", pictures[train], held.target[train], pictures[test], held.target[test])
