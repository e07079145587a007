"""Every tensor of a VILA checkpoint lands in its place, and the name of every weight is found both ways."""

import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file

from tests.hf.vila import CHECKPOINTS, GOLDEN, NAMES, all_tensors, copy, edit_json, edit_tensors, with_intern_vit
from tests.published import VILA
from vila_jax.dist.mesh import make_mesh
from vila_jax.errors import CheckpointError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.config import parse_config
from vila_jax.hf.keys import key_table
from vila_jax.hf.load import abstract_model, load_state, match_tensors
from vila_jax.nn.params import dotted
from vila_jax.nn.projector_types import projector_config

VILA15, LITE = "vila15_llama_siglip", "nvila_lite_qwen2_dynamic"


def arrays(checkpoint, **options) -> dict[str, np.ndarray]:
    _, state = load_state(checkpoint, dtype=np.float32, **options)
    return {dotted(path): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor(name):
    """Each of ours equals the one in the files, and each in the files is ours or known to be of no use."""
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    table, theirs, used = checkpoint.table, all_tensors(CHECKPOINTS / name), set()
    for path, array in arrays(checkpoint).items():
        tensor = table.to_hf(path)
        np.testing.assert_array_equal(array, theirs[tensor].float().numpy(), err_msg=path)
        used.add(tensor)
    unused = {tensor for tensor in theirs if table.is_unused(tensor, checkpoint.config.vlm)}
    assert used.isdisjoint(unused)
    assert used | unused == set(theirs)
    assert all("vision" in tensor for tensor in unused)


# The weights by which a swapped or shifted entry of a table would show: same shapes, other meaning.
PLACES = {
    VILA15: {
        "decoder.layers.1.mlp.gate.weight": ("llm", "model.layers.1.mlp.gate_proj.weight"),
        "decoder.layers.1.norm1.weight": ("llm", "model.layers.1.input_layernorm.weight"),
        "decoder.head": ("llm", "lm_head.weight"),
        "vision_tower.layers.0.norm2.bias": ("vision_tower", "vision_model.encoder.layers.0.layer_norm2.bias"),
        "vision_tower.layers.1.attn.k.weight": (
            "vision_tower",
            "vision_model.encoder.layers.1.self_attn.k_proj.weight",
        ),
        "projector.norms.0.weight": ("mm_projector", "layers.1.weight"),
        "projector.layers.0.bias": ("mm_projector", "layers.2.bias"),
        "projector.layers.1.weight": ("mm_projector", "layers.4.weight"),
    },
    LITE: {
        "projector.norms.0.bias": ("mm_projector", "layers.1.bias"),
        "projector.layers.0.weight": ("mm_projector", "layers.2.weight"),
        "projector.norms.1.weight": ("mm_projector", "layers.4.weight"),
        "projector.layers.1.bias": ("mm_projector", "layers.5.bias"),
        "projector.layers.2.weight": ("mm_projector", "layers.7.weight"),
        "decoder.layers.0.attn.q.bias": ("llm", "model.layers.0.self_attn.q_proj.bias"),
    },
    "v1_single_folder": {
        "projector.layers.0.weight": ("", "model.mm_projector.0.weight"),
        "projector.layers.1.weight": ("", "model.mm_projector.2.weight"),
        "decoder.layers.1.attn.v.weight": ("", "model.layers.1.self_attn.v_proj.weight"),
        "vision_tower.pre_norm.weight": (
            "",
            "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight",
        ),
    },
}


@pytest.mark.parametrize("name", PLACES)
def test_names_in_the_files(name):
    loaded = arrays(open_checkpoint(CHECKPOINTS / name))
    for path, (part, tensor) in PLACES[name].items():
        files = (CHECKPOINTS / name / part).glob("*.safetensors")
        theirs = {key: value for file in files for key, value in load_file(file).items()}
        np.testing.assert_array_equal(loaded[path], theirs[tensor].float().numpy(), err_msg=path)


@pytest.mark.parametrize("name", VILA)
def test_tables_go_both_ways_and_are_total(name):
    config = parse_config(VILA[name])
    table = key_table(config.layout, config.vlm)
    paths = [dotted(path) for path, _ in nnx.to_flat_state(abstract_model(config.vlm, np.float32)[1])]
    names = [table.to_hf(path) for path in paths]
    assert [table.from_hf(tensor) for tensor in names] == paths
    assert [table.canonical(tensor) for tensor in names] == names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu"])
def test_a_lone_layer_with_and_without_number(tmp_path, kind):
    folder = copy(VILA15, tmp_path)
    edit_json(folder / "mm_projector" / "config.json", mm_projector_type=kind)
    names = {"linear": "layers", "mlp1x_gelu": "layers.0"}[kind]
    weight, bias = torch.randn(64, 32), torch.randn(64)
    save_file({f"{names}.weight": weight, f"{names}.bias": bias}, folder / "mm_projector" / "model.safetensors")
    loaded = arrays(open_checkpoint(folder))
    np.testing.assert_array_equal(loaded["projector.layers.0.weight"], weight)
    np.testing.assert_array_equal(loaded["projector.layers.0.bias"], bias)


def test_identity_needs_no_files(tmp_path):
    folder = copy(VILA15, tmp_path)
    edit_json(folder / "mm_projector" / "config.json", mm_projector_type="identity")
    (folder / "mm_projector" / "model.safetensors").unlink()
    edit_json(folder / "vision_tower" / "config.json", hidden_size=64)
    edit_json(folder / "config.json", mm_hidden_size=64)
    assert open_checkpoint(folder).config.vlm.projector == projector_config("identity", 64, 64)


def test_head_of_siglip_may_be_absent(tmp_path):
    folder = copy(VILA15, tmp_path)
    edit_json(folder / "vision_tower" / "config.json", vision_use_head=False)
    edit_tensors(
        folder / "vision_tower" / "model.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if ".head." not in name},
    )
    assert arrays(open_checkpoint(folder)).keys() == arrays(open_checkpoint(CHECKPOINTS / VILA15)).keys()


def test_tied_embeddings(tmp_path):
    folder = copy(LITE, tmp_path)
    edit_json(folder / "llm" / "config.json", tie_word_embeddings=True)
    assert "decoder.head" not in arrays(open_checkpoint(folder))
    edit_tensors(
        folder / "llm" / "model.safetensors",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"},
    )
    assert "decoder.head" not in arrays(open_checkpoint(folder))
    edit_json(folder / "llm" / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"1 missing: llm/lm_head\.weight"):
        load_state(open_checkpoint(folder), dtype=np.float32)


def _widen(path, **sizes):
    edit_json(path / "config.json", **sizes)


MISFITS = {
    "llm": (lambda folder: _widen(folder / "llm", intermediate_size=95), r"llm/model\.layers\.0\.mlp\.down_proj"),
    "tower": (
        lambda folder: _widen(folder / "vision_tower", image_size=84),
        r"vision_tower/vision_model\.embeddings\.position_embedding\.weight \(expected \[36, 32\], got \[16, 32\]\)",
    ),
    "projector": (
        lambda folder: _widen(folder / "mm_projector", mm_projector_type="mlp_downsample_3x3_fix"),
        r"missing: .*mm_projector/layers\.7",
    ),
    "stranger": (
        lambda folder: edit_tensors(
            folder / "mm_projector" / "model.safetensors", lambda own: own | {"layers.3.weight": torch.ones(2)}
        ),
        r"1 unexpected: mm_projector/layers\.3\.weight",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_parts_that_do_not_fit(tmp_path, name):
    change, message = MISFITS[name]
    folder = copy(VILA15, tmp_path)
    change(folder)
    (folder / "vision_tower" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        load_state(open_checkpoint(folder), dtype=np.float32)


def test_positions_of_another_resolution(tmp_path):
    """`vision_resolution`: the reference's own resize, its hole included."""
    golden = np.load(GOLDEN / "modules" / "pos_embed_resize_linear.npz")
    folder = copy(VILA15, tmp_path)
    file = folder / "vision_tower" / "model.safetensors"
    positions = torch.tensor(np.tile(golden["pos_in"], (1, 4)))
    edit_tensors(file, lambda own: own | {"vision_model.embeddings.position_embedding.weight": positions})
    for size in (42, 98):
        edit_json(folder / "config.json", vision_resolution=size, interpolate_mode="linear")
        loaded = arrays(open_checkpoint(folder))["vision_tower.embeddings.position"]
        np.testing.assert_allclose(loaded, np.tile(golden[f"pos_out_{size}"], (1, 4)), atol=1e-6)
    edit_json(folder / "vision_tower" / "config.json", image_size=98)  # as saved by the code that had resized them
    edit_json(folder / "vision_tower" / "preprocessor_config.json", size={"height": 98, "width": 98})
    resized = torch.tensor(np.tile(golden["pos_out_98"], (1, 4)))
    edit_tensors(file, lambda own: own | {"vision_model.embeddings.position_embedding.weight": resized})
    np.testing.assert_array_equal(arrays(open_checkpoint(folder))["vision_tower.embeddings.position"], resized)


@pytest.fixture
def intern(tmp_path):
    """A VILA1.5 with the InternViT of the golden vectors as its tower."""
    return with_intern_vit(copy(VILA15, tmp_path))


def test_intern_vit(intern):
    folder, golden = intern
    loaded = arrays(open_checkpoint(folder))
    block = "param/encoder.layers.1"
    for path, tensor in {
        "embeddings.class_token": golden["param/embeddings.class_embedding"][0, 0],
        "embeddings.position": golden["param/embeddings.position_embedding"][0],
        "embeddings.patch_bias": golden["param/embeddings.patch_embedding.bias"],
        "layers.1.attn.qkv.weight": golden[f"{block}.attn.qkv.weight"],
        "layers.1.attn.q_norm.weight": golden[f"{block}.attn.q_norm.weight"],
        "layers.1.attn.k_norm.weight": golden[f"{block}.attn.k_norm.weight"],
        "layers.1.attn.out.bias": golden[f"{block}.attn.proj.bias"],
        "layers.1.scale1": golden[f"{block}.ls1"],
        "layers.1.scale2": golden[f"{block}.ls2"],
        "layers.2.norm2.weight": golden["param/encoder.layers.2.norm2.weight"],
        "layers.1.fc2.weight": golden[f"{block}.mlp.fc2.weight"],
    }.items():
        np.testing.assert_array_equal(loaded[f"vision_tower.{path}"], tensor, err_msg=path)
    assert len([path for path in loaded if path.startswith("vision_tower.")]) == 4 + 3 * 13


@pytest.mark.parametrize("size", [28, 84, 112])
def test_intern_vit_of_another_resolution(intern, size):
    folder, golden = intern
    edit_json(folder / "vision_tower" / "config.json", image_size=size)
    checkpoint = open_checkpoint(folder)
    wanted = golden[f"pos_embed_resized_{size}"][0]
    name = "vision_tower.embeddings.position"
    np.testing.assert_allclose(arrays(checkpoint)[name], wanted, atol=1e-5)
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    np.testing.assert_allclose(arrays(checkpoint, mesh=mesh)[name], wanted, atol=1e-5)


def test_unit_axes_over_a_mesh(intern):
    folder, golden = intern
    loaded = arrays(open_checkpoint(folder), mesh=make_mesh({"fsdp": 2, "tensor": 4}))
    np.testing.assert_array_equal(
        loaded["vision_tower.embeddings.position"], golden["param/embeddings.position_embedding"][0]
    )


def test_dtypes_in_memory():
    checkpoint = open_checkpoint(CHECKPOINTS / LITE)
    _, state = load_state(checkpoint, dtype=ml_dtypes.bfloat16)
    assert {leaf.dtype for _, leaf in nnx.to_flat_state(state)} == {np.dtype(ml_dtypes.bfloat16)}
    shapes = {dotted(path): leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
    assert len(match_tensors(checkpoint, shapes)) == len(shapes)
