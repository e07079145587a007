"""What a model at work says of its channels and heads, against hooks in transformers on the same prompts."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.hf.vila import CHECKPOINTS, NAMES, copy, edit_tensors
from tests.prune.oracle import inputs_of, kept_units, masking
from vila_jax.errors import PromptError
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.model import from_pretrained
from vila_jax.prune import Sparsity, calibrate, prune

MODELS = {
    "llava15_seed11": ("llava15_china.png", "next_2x2_flower_366x500.png"),
    "llava_next_seed12": ("next_1x2_china_200x420.png", "next_2x2_flower_366x500.png"),  # 3 and 5 tiles
}
PROMPTS = ("<s> USER: <image>\nwhat? ASSISTANT:", "<s> <image> and a longer question about it")


class Case:
    """A model of the golden folder, in both implementations, with two prompts."""

    def __init__(self, golden, name):
        self.folder = golden / "hired_e2e" / name
        self.compiled: list[str] = []
        self.ours = from_pretrained(self.folder, dtype="float32", on_compile=self.compiled.append)
        self.theirs = transformers.AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.pictures = [Image.open(golden / "hired_e2e" / picture) for picture in MODELS[name]]
        pairs = list(zip(PROMPTS, self.pictures, strict=True))
        self.requests = [self.ours.request(prompt, [picture], budget=None) for prompt, picture in pairs]

    def inputs(self, i):
        """The i-th prompt for transformers, each placeholder as many as the picture has visual tokens."""
        [image], size = self.requests[i].images, self.pictures[i].size[::-1]
        visual = self.ours.count_tokens(size, None)
        placeholder = self.ours.form.image_id
        ids = [t for token in self.requests[i].token_ids for t in [token] * (visual if token == placeholder else 1)]
        pixels = torch.tensor(np.asarray(image.pixels, np.float32))
        next_ = self.theirs.config.model_type == "llava_next"
        more = (
            {"pixel_values": pixels[None], "image_sizes": torch.tensor([size])} if next_ else {"pixel_values": pixels}
        )
        return {"input_ids": torch.tensor([ids])} | more

    def logits(self, i):
        with torch.no_grad():
            return self.theirs(**self.inputs(i)).logits[0].numpy()

    def means(self):
        """Over the tokens of both prompts, by hooks."""
        heard = [inputs_of(self.theirs, lambda i=i: self.logits(i)) for i in range(len(self.requests))]
        groups = self.theirs.config.text_config.num_key_value_heads
        width = self.theirs.model.language_model.layers[0].self_attn.head_dim
        found = {}
        for name in heard[0]:
            x = torch.cat([own[name].flatten(0, 1) for own in heard])
            if name.endswith("/heads"):
                found[name] = x.reshape(len(x), groups, -1, width).norm(dim=-1).sum(-1).mean(0)
            else:
                found[name] = x.abs().mean(0)
        return found


@pytest.fixture(scope="module", params=MODELS)
def case(request, golden):
    return Case(golden, request.param)


def test_means_are_those_of_transformers(case):
    ours, theirs = calibrate(case.ours, case.requests), case.means()
    built = case.ours.config.vlm.vision_depth
    unbuilt = {f"vision_tower.layers.{i}/vision_ffn" for i in range(built, 24)}
    assert len(unbuilt) == 1 and theirs.keys() - ours.keys() == unbuilt
    for name, mean in ours.items():
        np.testing.assert_allclose(mean, theirs[name], rtol=2e-4, atol=1e-6, err_msg=name)


def test_what_speaks_least_is_removed(case, tmp_path):
    """By our means and by torch's the same fall, and the rest is the source without what they contribute."""
    checkpoint = open_checkpoint(case.folder)
    sparsity = Sparsity(ffn=0.25, vision_ffn=0.5, heads=0.5)
    prune(checkpoint, tmp_path / "pruned", sparsity, activations=lambda: calibrate(case.ours, case.requests))
    pruned = from_pretrained(tmp_path / "pruned", dtype="float32")
    kept = kept_units(case.theirs, 96, 32, 1, case.means())
    by_magnitude = kept_units(case.theirs, 96, 32, 1)
    assert any(not torch.equal(kept[name], by_magnitude[name]) for name in kept)
    with masking(case.theirs, kept):
        expected = case.logits(1)
    ours = pruned.logits(PROMPTS[1], [case.pictures[1]], budget=None)
    np.testing.assert_allclose(ours, expected, atol=1e-3, rtol=1e-3)


def test_one_program_for_pictures_of_a_kind(case):
    calibrate(case.ours, [case.requests[0]] * 3)
    programs = case.compiled.count("calibration")
    calibrate(case.ours, [case.ours.request(PROMPTS[0], [case.pictures[0].rotate(180)], budget=None)])
    assert case.compiled.count("calibration") == programs


@pytest.mark.parametrize("name", NAMES)
def test_every_vila_can_be_calibrated(name, tmp_path):
    """A channel that is made to say 7 in every patch of every tile has a mean of 7."""
    folder = copy(name, tmp_path)
    for path in folder.rglob("*.safetensors"):
        edit_tensors(path, lambda held: {key: _saying_seven(key, tensor) for key, tensor in held.items()})
    model = from_pretrained(folder, dtype="float32")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 120, 3), np.uint8))
    means = calibrate(model, [model.request("<image> What?", [photo], budget=None)])
    config = model.config.vlm
    tower = {f"vision_tower.layers.{i}/vision_ffn" for i in range(config.vision_depth)}
    kinds = {"ffn": config.decoder.intermediate_size, "heads": config.decoder.num_kv_heads}
    decoder = {f"decoder.layers.{i}/{kind}": n for i in range(config.decoder.num_layers) for kind, n in kinds.items()}
    assert means.keys() == tower | decoder.keys()
    for name_, mean in means.items():
        assert np.isfinite(mean).all() and mean.max() > 0
        if name_ in tower:
            assert mean.shape == (config.vision.intermediate_size,)
            np.testing.assert_allclose(mean[1], 7, rtol=1e-5)
        else:
            assert mean.shape == (decoder[name_],)


def _saying_seven(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith(("fc1.weight", "fc1.bias")):
        tensor = tensor.clone()
        tensor[1] = 7 if name.endswith("bias") else 0
    return tensor


def test_prompts_that_say_nothing_of_the_tower():
    model = from_pretrained(CHECKPOINTS / NAMES[0])
    with pytest.raises(PromptError, match="a calibration prompt shows no picture"):
        calibrate(model, [model.request("What?")])
    with pytest.raises(PromptError, match="nothing to calibrate with"):
        calibrate(model, [])
