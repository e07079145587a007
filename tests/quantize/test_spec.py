"""The grammar of specs, and what is refused where."""

import dataclasses

import pytest

from vila_jax.errors import QuantizationError
from vila_jax.quantize import Quantization, check_pays
from vila_jax.quantize.spec import PARTS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", Quantization("int8")),
        (" int4 , kv = int8 ", Quantization("int4", kv="int8")),
        ("fp8,force", Quantization("fp8", force=True)),
        ("kv=int8", Quantization(kv="int8")),
        ("int4,group=64,parts=decoder+head", Quantization("int4", ("decoder", "head"), 64)),
        ("int8,force,kv=int8,parts=tower+tower", Quantization("int8", ("tower",), kv="int8", force=True)),
    ],
)
def test_specs_are_read_and_written(text, expected):
    found = Quantization.parse(text)
    assert found == expected and hash(found) == hash(expected)
    assert Quantization.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int9", "no format 'int9'.*Did you mean 'int8'"),
        ("", "no format ''"),
        ("int8,kv=int4", "format of keys and values 'int4'.*Allowed: int8"),
        ("int8,part=head", "no option 'part'.*Did you mean 'parts'"),
        ("int8,parts=tower+haed", "no part 'haed'.*Did you mean 'head'"),
        ("int8,parts=norm", "no part 'norm'"),
        ("int8,forced", "no option 'forced'.*Did you mean 'force'"),
        ("int8,force=yes", "malformed option 'force=yes'"),
        ("int8,kv", "malformed option 'kv'"),
        ("int8,kv=int8,kv=int8", "malformed option"),
        ("int4,group=0", "one member"),
        ("int4,group=x", "group is 'x'"),
        ("kv=int8,parts=head", "of weights, and no format"),
        ("kv=int8,group=4", "of weights, and no format"),
    ],
)
def test_wrong_specs(text, message):
    with pytest.raises(QuantizationError, match=message):
        Quantization.parse(text)


def test_nothing_at_all():
    with pytest.raises(QuantizationError, match="neither of weights nor of the cache"):
        Quantization()


def test_rules_name_weights_of_products_alone():
    means = Quantization("int8", tuple(PARTS)).means
    layer = "decoder.layers.11."
    for name in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.up", "mlp.down"):
        assert means(f"{layer}{name}.weight") and not means(f"{layer}{name}.bias")
    for name in ("norm1", "norm2"):
        assert not means(f"{layer}{name}.weight")
    tower = [f"vision_tower.{name}" for name in ("embeddings.patch_weight", "layers.0.norm1.weight")]
    assert not any(
        map(means, [*tower, "decoder.norm.weight", "newline", "projector.norms.0.weight", "scorer.fc1.weight"])
    )
    assert Quantization("int8").means(f"{layer}attn.q.weight") and not Quantization("int8").means("decoder.head")
    assert not Quantization(kv="int8").means(f"{layer}attn.q.weight")


@dataclasses.dataclass(frozen=True)
class Device:
    """What a device of JAX tells of itself."""

    platform: str
    device_kind: str = "a device"
    compute_capability: str | None = None


HOPPER, AMPERE = Device("gpu", "H100", "9.0"), Device("gpu", "A100", "8.0")
CPU, TPU = Device("cpu"), Device("tpu")


@pytest.mark.parametrize(
    ("spec", "device", "message"),
    [
        ("int8", CPU, r"slower here: XLA for CPUs writes converted weights.*'int8,force'"),
        ("kv=int8", CPU, r"'kv=int8,force'"),
        ("fp8", CPU, "XLA for CPUs"),
        ("fp8", AMPERE, "A100 has no 8-bit floating point"),
        ("fp8,kv=int8", TPU, "has no 8-bit floating point"),
        ("int8,kv=int8", AMPERE, None),
        ("int4", TPU, None),
        ("fp8", HOPPER, None),
        ("int8,force", CPU, None),
    ],
)
def test_refused_where_it_does_not_pay(spec, device, message):
    quantization = Quantization.parse(spec)
    if message is None:
        check_pays(quantization, device)
    else:
        with pytest.raises(QuantizationError, match=message):
            check_pays(quantization, device)


def test_no_quantization_is_never_refused():
    check_pays(None)
