"""Rounding against PyTorch's and against the bounds of theory; products against those with what was rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.nn.oracle import close, normal
from vila_jax.nn.cache import Int8Entries, empty_entries, read, write
from vila_jax.nn.quantized import FORMATS, dequantize, groups, product, quantize

WEIGHT = normal(12, 96) * np.exp(normal(12, 1, seed=1))  # rows of very different sizes


@pytest.mark.parametrize(
    ("inputs", "group", "expected"), [(256, 128, 2), (96, 128, 1), (344, 128, 4), (131, 128, 131), (96, None, 1)]
)
def test_groups_are_the_largest_that_divide_the_inputs(inputs, group, expected):
    assert groups(inputs, group) == expected  # 344 = 4 * 86; 131 is prime


@pytest.mark.parametrize(("kind", "group"), [("int8", None), ("int8", 32), ("int4", 32), ("int4", None)])
def test_whole_numbers_are_those_of_pytorch(kind, group):
    values, scales = quantize(jnp.asarray(WEIGHT), kind, group)
    largest = int(FORMATS[kind].largest)
    parts = torch.from_numpy(WEIGHT).reshape(12, groups(96, group), -1)
    expected = parts.abs().amax(-1) / largest
    close(scales, expected, atol=1e-6)
    theirs = torch.fake_quantize_per_channel_affine(
        parts.reshape(-1, parts.shape[-1]),
        torch.from_numpy(np.array(scales)).reshape(-1),
        torch.zeros(scales.size, dtype=torch.int32),
        0,
        -largest,
        largest,
    )
    close(dequantize(values, scales), theirs.reshape(12, 96), atol=1e-6)
    assert values.dtype == FORMATS[kind].dtype and np.abs(np.asarray(values, np.int32)).max() == largest


@pytest.mark.parametrize(("kind", "group"), [("int8", None), ("int4", 32)])
def test_no_weight_is_more_than_half_a_step_off(kind, group):
    values, scales = quantize(jnp.asarray(WEIGHT), kind, group)
    step = np.repeat(np.asarray(scales), 96 // scales.shape[1], axis=1)
    off = np.abs(np.asarray(dequantize(values, scales)) - WEIGHT)
    assert np.all(off <= step / 2 * (1 + 1e-5))
    assert off.max() > step.min() / 4  # the bound is not met by rounding nothing


def test_fp8_is_pytorchs_e4m3():
    values, scales = quantize(jnp.asarray(WEIGHT), "fp8")
    scaled = torch.from_numpy(WEIGHT) / torch.from_numpy(np.array(scales))
    close(values.astype(jnp.float32), scaled.to(torch.float8_e4m3fn).float(), atol=0)
    off = np.abs(np.asarray(dequantize(values, scales)) - WEIGHT)
    # Three bits behind the point; below 2**-6 steps of 2**-9.
    assert np.all(off <= np.maximum(np.abs(WEIGHT) / 16, np.asarray(scales) / 1024) * (1 + 1e-5))


def test_zeros_stay_zeros():
    for kind, form in FORMATS.items():
        values, scales = quantize(jnp.zeros((2, 8)), kind, form.group)
        assert not np.any(np.asarray(dequantize(values, scales))) and np.all(np.isfinite(scales))


@pytest.mark.parametrize(("kind", "group"), [("int8", None), ("int8", 32), ("int4", 32), ("fp8", None)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_product_is_that_with_the_dequantised_matrix(kind, group, dtype):
    values, scales = quantize(jnp.asarray(WEIGHT), kind, group)
    x = jnp.asarray(normal(3, 5, 96, seed=2)).astype(dtype)
    y = jax.jit(product, static_argnames="dtype")(x, values, scales, dtype=dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(values, scales), np.float64).T
    assert y.dtype == dtype and y.shape == (3, 5, 12)
    relative = 1e-5 if dtype == jnp.float32 else 2.0**-7
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=relative, atol=relative * np.abs(exact).max())


def test_four_bits_are_four_bits_in_memory():
    values = jax.ShapeDtypeStruct((64, 256), jnp.int4)
    plan = jax.jit(lambda values: values.astype(jnp.float32).sum()).lower(values).compile().memory_analysis()
    assert plan.argument_size_in_bytes == 64 * 256 // 2


@pytest.mark.parametrize("rows", [1, 3])
def test_cache_of_eight_bits(rows):
    """Every token and head has its own scale: half a step of it, whatever else was written."""
    shape = (2, 10, 8) if rows == 1 else (rows, 2, 10, 8)
    prompt = normal(rows, 2, 4, 8) * np.exp(normal(rows, 2, 4, 1, seed=1))
    token = 100 * normal(rows, 2, 1, 8, seed=2)
    offset = jnp.asarray([4, 2, 9][:rows])
    first = write(empty_entries(shape, jnp.int8), jnp.asarray(prompt), None)
    second = write(first, jnp.asarray(token), offset)
    assert isinstance(second, Int8Entries) and second.values.dtype == jnp.int8 and second.scales.shape[-2:] == (10, 1)
    expected = np.zeros((rows, 2, 10, 8), np.float32)
    expected[:, :, :4] = prompt
    for row, entry in enumerate(np.asarray(offset)):
        expected[row, :, entry] = token[row, :, 0]
    step = np.abs(expected).max(-1, keepdims=True) / 127
    found = np.asarray(read(second, jnp.float32)).reshape(expected.shape)
    assert np.all(np.abs(found - expected) <= step / 2 * (1 + 1e-5))
    assert read(second, jnp.bfloat16).dtype == jnp.bfloat16


def test_entries_beyond_the_end_are_dropped():
    cache = write(empty_entries((2, 2, 5, 4), "int8"), jnp.ones((2, 2, 5, 4)), None)
    after = write(cache, 3 * jnp.ones((2, 2, 1, 4)), jnp.asarray([5, 4]))
    found = np.asarray(read(after, jnp.float32))
    np.testing.assert_allclose(found[0], 1, rtol=1e-6)
    np.testing.assert_allclose(found[1, :, :4], 1, rtol=1e-6)
    np.testing.assert_allclose(found[1, :, 4], 3, rtol=1e-6)
