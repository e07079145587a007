"""A VILA1.5 with S2 from pixels to visual tokens, against torch: SigLIP of transformers, torch's own interpolations."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from vila_jax.model import from_pretrained

SOURCE = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints" / "vila15_llama_siglip"
SCALES, TILE, SIDE, WIDTH, HIDDEN = (56, 112), 56, 4, 32, 64
PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 140, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden checkpoint with S2 switched on and a projector for two scales."""
    folder = tmp_path_factory.mktemp("s2") / "vila15-s2"
    shutil.copytree(SOURCE, folder)
    config = json.loads((folder / "config.json").read_text())
    scales = ",".join(map(str, SCALES))
    config |= {"s2": True, "s2_scales": scales, "s2_max_split_size": TILE, "mm_hidden_size": len(SCALES) * WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    merged = 4 * len(SCALES) * WIDTH
    shapes = {
        "layers.1.weight": (merged,),
        "layers.1.bias": (merged,),
        "layers.2.weight": (HIDDEN, merged),
        "layers.2.bias": (HIDDEN,),
        "layers.4.weight": (HIDDEN, HIDDEN),
        "layers.4.bias": (HIDDEN,),
    }
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    safetensors.torch.save_file(weights, folder / "mm_projector" / "model.safetensors")
    return folder


def tower(folder: pathlib.Path):
    config = transformers.SiglipVisionConfig.from_pretrained(folder / "vision_tower")
    config.vision_use_head = False
    model = transformers.SiglipVisionModel(config).eval()
    state = safetensors.torch.load_file(folder / "vision_tower" / "model.safetensors")
    state = {name.removeprefix("vision_model."): value for name, value in state.items() if ".head." not in name}
    prefix = "vision_model." if next(iter(model.state_dict())).startswith("vision_model.") else ""
    model.load_state_dict({prefix + name: value for name, value in state.items()})
    return model


def expected_tokens(folder: pathlib.Path) -> torch.Tensor:
    squashed = np.asarray(PICTURE.resize((SCALES[-1], SCALES[-1]), Image.Resampling.BICUBIC))
    largest = torch.from_numpy((squashed.astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    maps = []
    for scale in SCALES:
        view = largest if scale == SCALES[-1] else F.interpolate(largest, size=(scale, scale), mode="bicubic")
        n = scale // TILE
        rows = []
        for r in range(n):
            tiles = [view[:, :, r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE] for c in range(n)]
            states = [tower(folder)(tile, output_hidden_states=True).hidden_states[-2] for tile in tiles]
            rows.append(torch.cat([s.permute(0, 2, 1).reshape(1, WIDTH, SIDE, SIDE) for s in states], dim=3))
        maps.append(F.interpolate(torch.cat(rows, dim=2), size=(SIDE, SIDE), mode="area"))
    grid = torch.cat(maps, dim=1)[0]
    windows = [
        torch.cat([grid[:, r + dr, c + dc] for dr in (0, 1) for dc in (0, 1)])
        for c in range(0, SIDE, 2)  # column by column, as before NVILA
        for r in range(0, SIDE, 2)
    ]
    w = safetensors.torch.load_file(folder / "mm_projector" / "model.safetensors")
    x = torch.stack(windows)
    x = F.layer_norm(x, x.shape[1:], w["layers.1.weight"], w["layers.1.bias"])
    x = F.gelu(F.linear(x, w["layers.2.weight"], w["layers.2.bias"]))
    return F.linear(x, w["layers.4.weight"], w["layers.4.bias"])


def test_visual_tokens_are_those_of_torch(folder):
    model = from_pretrained(folder)
    assert model.config.pictures.mode == "s2" and model.config.era == "vila1.5"
    prompt = "USER: <image>\nWhat? ASSISTANT:"
    rows = model.embeddings(prompt, [PICTURE])
    first = model.token_ids(prompt, [PICTURE]).index(-200)
    with torch.no_grad():
        expected = expected_tokens(folder).numpy()
    np.testing.assert_allclose(rows[first : first + len(expected)], expected, atol=1e-4)
    assert model.generate(prompt, [PICTURE], max_new_tokens=2, budget="hired:2").usage.visual_tokens_kept == 2


def test_scales_are_needed(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"s2_scales": None}))
    with pytest.raises(Exception, match="s2_scales"):
        from_pretrained(broken)
