"""Quantised models: what is loaded, how far their logits are from the float ones, batches, meshes, export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vila_jax
from tests.infer.checkpoints import Written, photo, write
from vila_jax.dist.mesh import make_mesh
from vila_jax.errors import CheckpointError, QuantizationError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.export import export
from vila_jax.hf.keys import LLAVA
from vila_jax.hf.load import load_state
from vila_jax.nn.params import dotted
from vila_jax.nn.quantized import FORMATS, dequantize
from vila_jax.quantize.spec import Quantization
from vila_jax.quantize.structure import scale_name

PROMPT, IMAGE = "w5 <image> w6 w7", photo(33, 71)
ROWS = {"w10 <image> w11": [photo(23, 150)], "w20 w21 w22": [], "<image> w30 w31 w32 w33": [photo(90, 41)]}
SPECS = ["int8", "int4,group=16", "fp8", "int8,parts=decoder+head+embedding+projector+tower"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Written:
    return write(tmp_path_factory.mktemp("llava"), text_args={"head_dim": 8, "max_position_embeddings": 200})


@pytest.fixture(scope="module")
def plain(written) -> vila_jax.Model:
    return vila_jax.from_pretrained(written.folder, dtype="float32")


def loaded(written: Written, spec: str, **options) -> vila_jax.Model:
    return vila_jax.from_pretrained(written.folder, dtype="float32", quantize=f"{spec},force", **options)


def arrays(state: nnx.State) -> dict[str, jax.Array]:
    return {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_loaded_stands_for_the_weights_of_the_file(written, spec):
    quantization = Quantization.parse(spec)
    held = arrays(load_state(open_checkpoint(written.folder), dtype=jnp.float32, quantization=quantization)[1])
    stored = {LLAVA.from_hf(name): tensor.numpy() for name, tensor in written.model.state_dict().items()}
    rounded = [name for name in held if quantization.means(name)]
    assert len(rounded) >= 14  # seven products in each of two layers
    for name in rounded:
        values, scales = held.pop(name), held.pop(scale_name(name))
        assert values.dtype == FORMATS[quantization.weights].dtype and scales.dtype == jnp.float32
        step = np.repeat(np.asarray(scales), values.shape[1] // scales.shape[1], axis=1)
        off = np.abs(np.asarray(dequantize(values, scales)) - stored[name])
        bound = np.maximum(np.abs(stored[name]) / 16, step / 1024) if quantization.weights == "fp8" else step / 2
        assert np.all(off <= bound * (1 + 1e-5)), name
    for name, array in held.items():
        np.testing.assert_array_equal(array, stored[name], err_msg=name)


@pytest.mark.parametrize("spec", SPECS)
def test_logits_are_those_of_transformers_with_the_rounded_weights(written, spec):
    """The oracle computes in float32 with what values and scales stand for: only the rounding of sums is left."""
    ours = loaded(written, spec)
    held = arrays(ours.engine.phases.programs.state)
    oracle = {name: tensor.clone() for name, tensor in written.model.state_dict().items()}
    changed = dict(oracle)
    for name in oracle:
        path = LLAVA.from_hf(name)
        if path in held and scale_name(path) in held:
            changed[name] = torch.from_numpy(np.array(dequantize(held[path], held[scale_name(path)])))
    inputs = written.processor(text=[PROMPT], images=[IMAGE], return_tensors="pt")
    with torch.no_grad():
        exact = written.model(**inputs).logits[0].numpy()
        written.model.load_state_dict(changed)
        try:
            expected = written.model(**inputs).logits[0].numpy()
        finally:
            written.model.load_state_dict(oracle)
    found = ours.logits(PROMPT, [IMAGE])
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)
    assert np.abs(found - exact).max() > 1e-3  # and the rounding is there


def test_more_bits_err_less(written, plain):
    exact = plain.logits(PROMPT, [IMAGE])
    errors = {spec: np.abs(loaded(written, spec).logits(PROMPT, [IMAGE]) - exact).mean() for spec in SPECS[:3]}
    spread = np.abs(exact - exact.mean()).mean()
    assert 0 < errors["int8"] < 0.02 * spread
    assert errors["int8"] < errors["fp8"] < errors["int4,group=16"] < 0.5 * spread


@pytest.mark.parametrize(("spec", "budget"), [("int8,kv=int8", None), ("kv=int8", "sparse:0.5,layer=1")])
def test_rows_of_a_batch_answer_as_alone(written, spec, budget):
    model = loaded(written, spec)
    options = {"max_new_tokens": 11, "ignore_eos": True, "budget": budget}
    together = model.generate(list(ROWS), list(ROWS.values()), **options)
    alone = [model.generate(*row, **options) for row in ROWS.items()]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_sharded_weights_are_the_same_numbers(written):
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    quantization = Quantization.parse("int4,group=8")
    checkpoint = open_checkpoint(written.folder)
    alone = arrays(load_state(checkpoint, dtype=jnp.float32, quantization=quantization)[1])
    sharded = arrays(load_state(checkpoint, dtype=jnp.float32, quantization=quantization, mesh=mesh)[1])
    for name, array in alone.items():
        pair = (np.asarray(own, np.float32) for own in (sharded[name], array))
        np.testing.assert_array_equal(*pair, err_msg=name)
    gate = "decoder.layers.0.mlp.gate"
    assert not sharded[f"{gate}.weight"].is_fully_replicated and not sharded[f"{gate}.scale"].is_fully_replicated
    assert {shard.data.shape[0] * 2 for shard in sharded[f"{gate}.scale"].addressable_shards} == {
        alone[f"{gate}.scale"].shape[0]
    }


def test_answers_over_a_mesh(written):
    alone = loaded(written, "int8,kv=int8")
    sharded = loaded(written, "int8,kv=int8", mesh=make_mesh({"fsdp": 4, "tensor": 2}))
    np.testing.assert_allclose(sharded.logits(PROMPT, [IMAGE]), alone.logits(PROMPT, [IMAGE]), atol=2e-4, rtol=1e-4)
    answers = [model.generate(PROMPT, [IMAGE], max_new_tokens=5, ignore_eos=True) for model in (alone, sharded)]
    assert answers[0].token_ids == answers[1].token_ids


def test_export_is_refused(written, tmp_path):
    checkpoint = open_checkpoint(written.folder)
    _, state = load_state(checkpoint, dtype=jnp.float32, quantization=Quantization("int8"))
    with pytest.raises(CheckpointError, match=r"in fewer bits have no place.*without `quantize`"):
        export(checkpoint, state, tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


def test_refused_on_a_cpu_before_anything_is_read(tmp_path):
    with pytest.raises(QuantizationError, match=r"smaller but slower here.*int8,force"):
        vila_jax.from_pretrained(tmp_path / "nowhere", quantize="int8")


def test_a_part_that_the_model_lacks(tmp_path):
    tied = write(tmp_path / "tied", tie_word_embeddings=True, text_args={"tie_word_embeddings": True})
    with pytest.raises(QuantizationError, match=r"no head of its own.*parts=embedding"):
        loaded(tied, "int8,parts=head")
    model = loaded(tied, "int8,parts=embedding")
    exact = vila_jax.from_pretrained(tied.folder, dtype="float32").logits(PROMPT, [IMAGE])
    found = model.logits(PROMPT, [IMAGE])
    assert 0 < np.abs(found - exact).mean() < 0.02 * np.abs(exact).mean()
