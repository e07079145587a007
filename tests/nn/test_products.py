"""Products beside NumPy's in float64: what they give must not depend on the form that they are asked for in."""

import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.oracle import normal
from vila_jax.nn.products import contract, linear
from vila_jax.nn.stacked import Execution

ROUNDING = 2.0**-8  # of bfloat16: half a step, relative
SHAPES = [(), (1,), (1, 1), (2,), (4, 1), (9,), (16, 1), (3, 7), (0,)]


def _given(shape, dtype):
    x, weight = jnp.asarray(normal(*shape, 96), dtype), jnp.asarray(normal(40, 96, seed=1), dtype)
    return x, weight, np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("result", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(shape, dtype, result):
    """bfloat16 is rounded once, behind sums in float32: no more than half a step off."""
    x, weight, expected = _given(shape, dtype)
    y = jax.jit(linear, static_argnums=2)(x, weight, result)
    assert (y.shape, y.dtype) == ((*shape, 40), result)
    rtol = ROUNDING if result == jnp.bfloat16 else 0
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=rtol + 1e-6, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contract(dtype):
    x, y = jnp.asarray(normal(2, 3, 5, 16), dtype), jnp.asarray(normal(2, 3, 16, 8, seed=1), dtype)
    out = contract("...MS,...SH->...MH", x, y)
    expected = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
    assert out.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(out, np.float64), expected, rtol=ROUNDING if dtype == jnp.bfloat16 else 1e-6, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, dtype):
    """They are in the dtype of what they belong to, and those of the plain spelling but for rounding."""
    x, weight, _ = _given(shape, dtype)
    towards = jnp.asarray(normal(*shape, 40, seed=2), dtype)
    precision = 2 * ROUNDING if dtype == jnp.bfloat16 else 1e-5

    def loss(product):
        return lambda x, weight: jnp.vdot(product(x, weight).astype(jnp.float32), towards.astype(jnp.float32))

    ours = jax.grad(loss(linear), (0, 1))(x, weight)
    plain = jax.grad(loss(lambda x, weight: jnp.einsum("...i,oi->...o", x, weight)), (0, 1))(x, weight)
    for own, other in zip(ours, plain, strict=True):
        assert own.dtype == dtype
        expected = np.asarray(other, np.float32)
        atol = precision * np.abs(expected).max(initial=1)
        np.testing.assert_allclose(np.asarray(own, np.float32), expected, rtol=precision, atol=atol)


@pytest.mark.parametrize("dtypes", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16), (jnp.bfloat16,) * 2])
def test_operands_promote(dtypes):
    """Whatever the number of rows, as they do in the plain spelling."""
    for rows in (1, 2, 8, 100):
        x, weight = jnp.zeros((rows, 1, 16), dtypes[0]), jnp.zeros((32, 16), dtypes[1])
        assert linear(x, weight).dtype == jnp.einsum("...i,oi->...o", x, weight).dtype


@pytest.mark.skipif(platform.machine() != "x86_64", reason="read from what XLA compiles for x86")
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_no_weight_of_bfloat16_is_converted(rows):
    """The library takes products as they are: nothing as large as the weight is there in float32."""
    x, weight = jnp.zeros((1, rows, 512), jnp.bfloat16), jnp.zeros((1024, 512), jnp.bfloat16)

    def compiled(product):
        return jax.jit(product).lower(x, weight).compile().as_text()

    assert "f32[1024,512]" not in compiled(lambda x, weight: linear(x, weight, jnp.bfloat16))
    in_float32 = compiled(lambda x, weight: linear(x.astype(jnp.float32), weight.astype(jnp.float32), jnp.bfloat16))
    assert "f32[1024,512]" in in_float32


@pytest.mark.parametrize(("rows", "dtype"), [(2, jnp.float32), (64, jnp.float32), (8, jnp.bfloat16)])
def test_for_a_step_of_a_few_rows_the_weight_comes_first(rows, dtype):
    """As compiled, too: XLA may exchange operands."""
    weight = jnp.zeros((1024, 512), dtype)

    def is_first(x):
        compiled = jax.jit(linear, static_argnums=2).lower(x, weight, dtype).compile().as_text()
        return f"f32[1024,{rows}]{{1,0}} dot(" in compiled

    assert is_first(jnp.zeros((rows, 1, 512), dtype))
    assert not is_first(jnp.zeros((1, rows, 512), dtype))


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_elsewhere_products_stay_as_they_are_written(monkeypatch, backend):
    x, weight = jnp.zeros((1, 512), jnp.bfloat16), jnp.zeros((1024, 512), jnp.bfloat16)

    def program():
        return str(jax.make_jaxpr(lambda x, weight: linear(x, weight, jnp.bfloat16))(x, weight))

    assert "pad" in program()
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert "pad" not in program() and "f32" not in program()


@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_no_float32_is_kept_for_the_backward_pass(remat, capsys):
    """Of a product that is rounded the rounded numbers are kept, under the policies that keep products."""
    x, up = jnp.zeros((2, 8, 16), jnp.bfloat16), jnp.zeros((32, 16), jnp.bfloat16)

    def block(x, up):
        return jnp.sin(linear(jax.nn.silu(linear(x, up, jnp.bfloat16)), up.T, jnp.bfloat16))

    jax.ad_checkpoint.print_saved_residuals(Execution(remat).wrap(block), x, up)
    kept = [line.split("]")[0] for line in capsys.readouterr().out.splitlines()]
    assert kept and all(line.startswith("bf16") for line in kept)
    assert ("bf16[2,8,32" in kept) == (remat != "full")
