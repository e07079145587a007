"""VILA's folders as they come: every layout, parts that are missing or elsewhere, what is never followed."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hf.vila import CHECKPOINTS, NAMES, all_tensors, copy, edit_json, edit_tensors, merge_shards
from vila_jax.errors import CheckpointError, ConfigError, HubError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import load_state

V1, VILA15, NVILA = "v1_single_folder", "vila15_llama_siglip", "nvila_qwen2_dynamic_s2"
V1_TOWER = "model.vision_tower.vision_tower."


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))


@pytest.fixture
def hub(no_hub, monkeypatch, tmp_path):
    """A Hub of one model; gives its folder and the ids that were asked for."""
    folder, asked = tmp_path / "hub", []
    folder.mkdir()

    def download(hub_id, **_):
        asked.append(hub_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder, asked


LAYOUTS = {
    "nvila_lite_qwen2_dynamic": ("folders", "nvila", "dynamic", "NVILA (SigLIP + Qwen2)"),
    NVILA: ("folders", "nvila", "dynamic_s2", "NVILA (SigLIP + Qwen2)"),
    V1: ("v1", "v1", "pad", "VILA (CLIP + Llama)"),
    "v1arch_llama_clip_pad": ("folders", "vila1.5", "pad", "VILA1.5 (CLIP + Llama)"),
    VILA15: ("folders", "vila1.5", "resize", "VILA1.5 (SigLIP + Llama)"),
}


@pytest.mark.parametrize("name", NAMES)
def test_layouts(name):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    config = checkpoint.config
    assert (config.layout, config.era, config.pictures.mode, config.architecture) == LAYOUTS[name]
    tensors = all_tensors(CHECKPOINTS / name)
    assert set(checkpoint.locations) == set(tensors)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    inner = CHECKPOINTS / name if config.layout == "v1" else CHECKPOINTS / name / "llm"
    assert str(checkpoint.tokenizer_folder) == str(inner)
    assert checkpoint.generation == json.loads((inner / "generation_config.json").read_text())
    pictures = inner.parent / "vision_tower" / "preprocessor_config.json"
    assert checkpoint.preprocessor == (json.loads(pictures.read_text()) if config.layout == "folders" else {})


def test_sizes_of_a_v1_tower_come_from_its_tensors():
    expected = json.loads((CHECKPOINTS.parent / "e2e" / f"{V1}_0.json").read_text())["vision_tower_config"]
    vision = open_checkpoint(CHECKPOINTS / V1).config.vlm.vision
    assert vision.hidden_size == expected["hidden_size"]
    assert vision.intermediate_size == expected["intermediate_size"]
    assert vision.num_layers == expected["num_hidden_layers"]
    assert vision.num_heads == expected["num_attention_heads"]
    assert vision.image_size == expected["image_size"]
    assert vision.patch_size == expected["patch_size"]
    assert vision.hidden_act == expected["hidden_act"]
    assert vision.norm_eps == expected["layer_norm_eps"]


def test_era_can_be_chosen():
    config = open_checkpoint(CHECKPOINTS / VILA15, era="nvila").config
    assert (config.era, config.pictures.column_major) == ("nvila", False)


def test_the_opened_config_is_whole(tmp_path):
    """Without the nested copies, and with stale ones: the part's own file wins."""
    expected = open_checkpoint(CHECKPOINTS / VILA15)
    bare, stale = copy(VILA15, tmp_path / "a"), copy(VILA15, tmp_path / "b")
    keys = ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg")
    edit_json(bare / "config.json", **dict.fromkeys(keys, ...))
    edit_json(stale / "config.json", llm_cfg="runs/llm", vision_tower_cfg={"model_type": "radio"}, mm_projector_cfg={})
    for folder in (bare, stale):
        assert open_checkpoint(folder).config == expected.config
        assert open_checkpoint(folder).raw_config["vision_tower_cfg"] == expected.raw_config["vision_tower_cfg"]


def test_nested_config_stands_in_for_a_missing_file(tmp_path):
    folder = copy(VILA15, tmp_path)
    for part in ("llm", "vision_tower", "mm_projector"):
        (folder / part / "config.json").unlink()
    assert open_checkpoint(folder).config == open_checkpoint(CHECKPOINTS / VILA15).config


def test_only_the_root_config_is_needed_to_describe(tmp_path):
    for name in (VILA15, NVILA):
        (tmp_path / "config.json").write_bytes((CHECKPOINTS / name / "config.json").read_bytes())
        described = open_checkpoint(tmp_path, weights=False)
        assert described.config.vlm == open_checkpoint(CHECKPOINTS / name).config.vlm
        assert described.shards == {}


def test_preview_form(tmp_path):
    """`-hf-preview`: another model type, and code, which stays where it is."""
    folder = copy(VILA15, tmp_path)
    edit_json(folder / "config.json", model_type="vila", auto_map={"AutoModel": "modeling_vila.VILAForCausalLM"})
    (folder / "modeling_vila.py").write_text("raise SystemExit")
    assert open_checkpoint(folder).config == open_checkpoint(CHECKPOINTS / VILA15).config


def test_awq_folders_that_call_themselves_llava(tmp_path):
    folder = copy(VILA15, tmp_path)
    edit_json(folder / "config.json", model_type="llava")
    assert open_checkpoint(folder).config.era == "vila1.5"


def test_links_between_the_parts_and_the_hubs_cache(tmp_path):
    """The cache: `snapshots/<commit>/llm/<file>` links to `../../../blobs/<hash>`."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    shutil.copytree(CHECKPOINTS / NVILA, snapshot)
    for number, path in enumerate(sorted(snapshot.rglob("*.safetensors"))):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../../blobs/{number}")
    load_state(open_checkpoint(snapshot), dtype=np.float32)


def test_a_part_that_leaves_the_folder_is_refused(tmp_path):
    folder = copy(VILA15, tmp_path)
    (folder / "llm").rename(tmp_path / "elsewhere")
    (folder / "llm").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"llm/model\.safetensors: this is a link that leaves the folder"):
        open_checkpoint(folder)


def test_an_index_of_a_part_cannot_point_elsewhere(tmp_path):
    folder = copy(NVILA, tmp_path)
    index = folder / "llm" / "model.safetensors.index.json"
    contents = json.loads(index.read_text())
    name = next(iter(contents["weight_map"]))
    for file in ("../mm_projector/model.safetensors", "/etc/secret.safetensors"):
        contents["weight_map"][name] = file
        index.write_text(json.dumps(contents))
        with pytest.raises(CheckpointError, match="not safetensors files of its own folder"):
            open_checkpoint(folder)


@pytest.mark.parametrize("part", ["llm", "mm_projector"])
def test_missing_part(tmp_path, part):
    folder = copy(VILA15, tmp_path)
    shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match=f"there is no folder {part}"):
        open_checkpoint(folder)


def test_part_without_weights(tmp_path):
    folder = copy(VILA15, tmp_path)
    (folder / "mm_projector" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"mm_projector: there are no weights here"):
        open_checkpoint(folder)


def test_quantised_forms(tmp_path):
    awq, fp8 = copy(VILA15, tmp_path / "awq"), copy(VILA15, tmp_path / "fp8")
    (awq / "llm" / "model.safetensors").rename(awq / "llm" / "vila15-3b-w4-g128-awq-v2.pt")
    with pytest.raises(ConfigError, match=r"llm: .*AWQ \(vila15-3b-w4-g128-awq-v2.pt\)\. Supported: .* without AWQ"):
        open_checkpoint(awq)
    (fp8 / "llm").rename(fp8 / "fp8_llm")
    with pytest.raises(ConfigError, match=r"8 bits alone \(fp8_llm\)\. Supported: .*`llm`"):
        open_checkpoint(fp8)


def _without_tower(tmp_path):
    """v1 without the tensors of its tower, and those tensors under the names of a whole CLIP."""
    folder = copy(V1, tmp_path)
    file = merge_shards(folder)
    tensors = load_file(file)
    edit_tensors(file, lambda _: {name: t for name, t in tensors.items() if not name.startswith(V1_TOWER)})
    tower = {name.removeprefix(V1_TOWER): t for name, t in tensors.items() if name.startswith(V1_TOWER)}
    return folder, tower


def test_a_tower_that_is_only_named_comes_from_the_hub(tmp_path, hub):
    folder, tower = _without_tower(tmp_path)
    source, asked = hub
    rest = {"logit_scale": torch.ones(()), "text_model.final_layer_norm.weight": torch.ones(3)}
    save_file(tower | rest | {"visual_projection.weight": torch.ones(2, 3)}, source / "model.safetensors")
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 3}
    vision |= {"image_size": 56, "patch_size": 14}
    (source / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    found, whole = open_checkpoint(folder), open_checkpoint(CHECKPOINTS / V1)
    assert asked == ["openai/clip-vit-tiny-patch14-56"]
    assert found.config == whole.config
    ours, theirs = (load_state(c, dtype=np.float32)[1]["vision_tower"] for c in (found, whole))
    np.testing.assert_array_equal(
        ours["embeddings"]["position"].get_value(), theirs["embeddings"]["position"].get_value()
    )


def test_the_tower_folder_of_vila15_may_be_missing(tmp_path, hub):
    folder = copy(VILA15, tmp_path)
    source, asked = hub
    for path in (folder / "vision_tower").iterdir():
        shutil.copy(path, source)
    shutil.rmtree(folder / "vision_tower")
    edit_json(folder / "config.json", vision_tower_cfg="google/siglip-tiny")
    found = open_checkpoint(folder)
    assert found.config == open_checkpoint(CHECKPOINTS / VILA15).config
    assert found.preprocessor["image_mean"] == [0.5, 0.5, 0.5]
    assert set(found.locations) == set(all_tensors(CHECKPOINTS / VILA15))
    edit_json(folder / "config.json", vision_tower_cfg=None, mm_vision_tower="google/siglip-small")
    assert open_checkpoint(folder).config == found.config
    assert asked == ["google/siglip-tiny", "google/siglip-small"]


@pytest.mark.parametrize("name", ["/etc", "../tower", "C:\\tower", "./a/b/c", None, 3])
def test_a_local_path_of_a_tower_is_not_followed(tmp_path, name):
    folder, _ = _without_tower(tmp_path)
    edit_json(folder / "config.json", mm_vision_tower=name)
    with pytest.raises(CheckpointError, match=r"vision tower is not here, and .* not the name of one on the Hugging"):
        open_checkpoint(folder)


def test_a_local_folder_of_the_towers_name_is_not_used(tmp_path, monkeypatch):
    folder, _ = _without_tower(tmp_path)
    shutil.copytree(CHECKPOINTS / VILA15 / "vision_tower", tmp_path / "openai" / "clip-vit-tiny-patch14-56")
    monkeypatch.undo()  # the Hub itself, which is switched off in tests
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match="openai/clip-vit-tiny-patch14-56: the Hub cannot be reached"):
        open_checkpoint(folder)


def test_a_v1_tower_that_is_no_clip(tmp_path):
    folder = copy(V1, tmp_path)
    edit_tensors(
        merge_shards(folder),
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "class_embedding" not in name},
    )
    with pytest.raises(CheckpointError, match="not those of a CLIP tower"):
        open_checkpoint(folder)
