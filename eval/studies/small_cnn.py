"""A small convolutional network, and the same without some of its channels."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vila_jax.prune.parts import strongest

_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the network.

    Attributes:
      side: of a picture, in pixels.
      stride: of the first convolution.
      widths: channels behind each of the three convolutions.
    """

    side: int
    stride: int
    widths: tuple[int, int, int]

    @property
    def sides(self) -> tuple[int, int, int]:
        """Of the maps that the convolutions make; they are halved behind the second and the third."""
        first = -(-self.side // self.stride)
        return first, first, first // 2

    @property
    def cells(self) -> int:
        """Positions that the classifier reads."""
        return (self.sides[2] // 2) ** 2

    def kept(self, fraction: float) -> "Shape":
        """With this fraction of the channels of every convolution."""
        first, second, third = (max(1, round(width * fraction)) for width in self.widths)
        return dataclasses.replace(self, widths=(first, second, third))


class SmallCNN(nnx.Module):
    """Three 3x3 convolutions with ReLU, the last two followed by 2x2 max pooling, and a linear classifier."""

    def __init__(self, shape: Shape, *, rngs: nnx.Rngs):
        self.shape = shape
        inputs, strides = (1, *shape.widths[:2]), (shape.stride, 1, 1)
        self.convolutions = nnx.List(
            [
                nnx.Conv(i, o, (3, 3), strides=stride, rngs=rngs)
                for i, o, stride in zip(inputs, shape.widths, strides, strict=True)
            ]
        )
        self.classifier = nnx.Linear(shape.cells * shape.widths[2], _CLASSES, rngs=rngs)

    def __call__(self, pictures: Float[Array, "B h w 1"]) -> Float[Array, "B 10"]:
        """Scores of the ten digits."""
        return self.with_means(pictures)[0]

    def with_means(self, pictures: Float[Array, "B h w 1"]) -> tuple[Float[Array, "B 10"], list[Float[Array, " _"]]]:
        """Scores, and how strongly every channel speaks: its mean behind the ReLU, for each convolution."""
        x, means = pictures, []
        for i, convolution in enumerate(self.convolutions):
            x = jax.nn.relu(convolution(x))
            means.append(jnp.mean(x, axis=(0, 1, 2)))
            if i > 0:
                x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.classifier(x.reshape(len(x), -1)), means


def flops(shape: Shape) -> int:
    """Of one picture: convolutions and classifier, a multiply-add counted as two, the padding as if it were picture."""
    inputs = (1, *shape.widths[:2])
    taps = zip(inputs, shape.widths, shape.sides, strict=True)
    return 2 * (sum(9 * i * o * side**2 for i, o, side in taps) + shape.cells * shape.widths[2] * _CLASSES)


def norms(model: SmallCNN) -> list[Float[np.ndarray, " _"]]:
    """The L2 norm of all weights of every channel, those that make it and those that read it (`vila_jax.prune`)."""
    kernels = [np.asarray(convolution.kernel[...], np.float64) for convolution in model.convolutions]
    makers = [np.square(kernel).sum(axis=(0, 1, 2)) for kernel in kernels]
    readers = [np.square(kernel).sum(axis=(0, 1, 3)) for kernel in kernels[1:]]
    readers.append(np.square(_by_channel(model)).sum(axis=(0, 2)))
    return [np.sqrt(made + read) for made, read in zip(makers, readers, strict=True)]


def _by_channel(model: SmallCNN) -> Float[np.ndarray, "cells channels 10"]:
    """The classifier's weights."""
    return np.asarray(model.classifier.kernel[...]).reshape(model.shape.cells, model.shape.widths[2], _CLASSES)


def without_weakest(model: SmallCNN, scores: Sequence[Float[np.ndarray, " _"]], shape: Shape) -> SmallCNN:
    """A smaller network: of every convolution the channels with the highest scores, in their order."""
    kept = [strongest(np.asarray(own), width) for own, width in zip(scores, shape.widths, strict=True)]
    small = SmallCNN(shape, rngs=nnx.Rngs(0))
    read: Int[np.ndarray, " _"] = np.zeros(1, np.int64)  # the picture's only channel
    for old, new, own in zip(model.convolutions, small.convolutions, kept, strict=True):
        assert old.bias is not None and new.bias is not None
        new.kernel[...] = jnp.asarray(np.asarray(old.kernel[...])[:, :, read][..., own])
        new.bias[...] = jnp.asarray(np.asarray(old.bias[...])[own])
        read = own
    assert model.classifier.bias is not None and small.classifier.bias is not None
    small.classifier.kernel[...] = jnp.asarray(_by_channel(model)[:, read].reshape(-1, _CLASSES))
    small.classifier.bias[...] = model.classifier.bias[...]
    return small
