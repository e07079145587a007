"""Loss and gradients against the reference's, and packed rows against their samples one by one."""

import io
import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vila_jax
from train.data.labels import IGNORED
from train.data.packing import RowShape, pack
from train.data.records import Conversation
from train.data.samples import Layout
from train.data.visual import Visual
from train.objective import answer_sums
from vila_jax.hf.keys import key_table
from vila_jax.hf.load import load_state
from vila_jax.nn.params import dotted
from vila_jax.text.vila_styles import get_vila_style
from vila_jax.vision.preprocess import ProcessedImage

ROLES = {"human": "user", "gpt": "assistant"}


def picture():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


class Given:
    """In the place of a preprocessor: the tiles that the reference saw, by the number of tiles of each picture."""

    def __init__(self, real, pixels, tiles):
        self.values_config, self._pixels, self._tiles = real.values_config, iter(pixels), tiles
        self._real = real

    def pictures(self, images, limit=None):
        return [self._picture(len(images) == 1) for _ in images]

    def _picture(self, alone):
        count = self._tiles if alone else 1
        size = (70 * (count - 1), 70) if count > 1 else (70, 70)
        geometry = self._real.geometry(size, alone=alone)
        assert geometry.num_tiles == count
        tiles = [next(self._pixels) for _ in range(count)]
        return ProcessedImage(np.stack([tiles[-1], *tiles[:-1]]), geometry)  # the reference has the overview last


def golden_batch(golden, name):
    """The reference's batch of three conversations as our rows, its arrays, and the model."""
    folder = golden / "vila" / "loss"
    facts = json.loads((folder / f"{name}_loss.json").read_text())
    with np.load(folder / f"{name}_loss.npz") as file:
        arrays = dict(file)
    model = vila_jax.from_pretrained(golden / "vila" / "checkpoints" / name, dtype="float32", era="nvila")
    shape = RowShape(tokens=arrays["fused_labels"].shape[1], tiles=4, bins=1)
    style = model.style if facts["conv_mode"] == "auto" else get_vila_style("vicuna_v1")
    given = Given(model.preprocessor, arrays["pixel_values"], tiles=len(arrays["pixel_values"]) - 2)
    layout = Layout(model.form, style, given, shape, Visual(model.engine.planner))
    laid = []
    for turns in facts["conversations"]:
        marks = "<image>\n" * 4
        messages = [{"role": ROLES[t["from"]], "content": t["value"].replace(marks, "<image>\n")} for t in turns]
        shown = sum(message["content"].count("<image>") for message in messages)
        laid.append(layout(Conversation("x", tuple(messages), (picture(),) * shown)))
    return laid, arrays, facts, model, shape


def rows(laid, shape, per_tile, bins):
    """Packed rows of samples, each in a row of its own or several together."""
    groups = [laid] if bins == "together" else [[one] for one in laid]
    made = []
    for group in groups:
        source = grain.MapDataset.source([one.features() for one in group]).to_iter_dataset()
        made += list(pack(source, shape, per_tile))
    return {name: jnp.asarray(np.stack([row[name] for row in made])) for name in made[0]}


def loss_of(graphdef, state, batch):
    sums = answer_sums(nnx.merge(graphdef, state), batch, chunk=32)
    return sums.loss / sums.targets


def by_name(state, model):
    """Leaves by the names of the reference."""
    table = key_table("folders", model.config.vlm)
    flat = {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    return {table.to_hf(path).replace("/", ".", 1): leaf for path, leaf in flat.items()}


def theirs(name):
    return name.replace("vision_tower.vision_tower.", "vision_tower.")


@pytest.mark.parametrize("name", ["vila15_llama_siglip", "nvila_lite_qwen2_dynamic"])
def test_loss_and_gradients_of_the_reference(golden, name):
    laid, arrays, facts, model, shape = golden_batch(golden, name)
    for one, labels, mask in zip(laid, arrays["fused_labels"], arrays["fused_attention_mask"], strict=True):
        np.testing.assert_array_equal(one.labels, labels[mask])
    batch = rows(laid, shape, model.engine.planner.tokens_per_tile, "apart")
    assert int(np.sum(batch["targets"] != IGNORED)) == facts["n_label_tokens"]
    graphdef, state = load_state(model.checkpoint, dtype=jnp.float32)
    loss, grads = jax.jit(jax.value_and_grad(lambda state: loss_of(graphdef, state, batch)))(state)
    np.testing.assert_allclose(loss, arrays["loss"], rtol=1e-4)
    ours = by_name(grads, model)
    norms = {theirs(key): norm for key, norm in facts["grad_l2_norm"].items()}
    assert len(norms) > 40 and set(ours) <= set(norms)
    assert not [key for key in set(norms) - set(ours) if norms[key]]  # blocks behind the feature layer are not built
    for key, value in ours.items():
        np.testing.assert_allclose(jnp.linalg.norm(value), norms[key], rtol=1e-4, atol=1e-6, err_msg=key)
    for key in (key for key in arrays if key.startswith("grad/")):
        np.testing.assert_allclose(ours[key.removeprefix("grad/")], arrays[key], rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["vila15_llama_siglip", "nvila_lite_qwen2_dynamic"])
def test_packed_samples_are_learned_as_if_apart(golden, name):
    laid, _, _, model, shape = golden_batch(golden, name)
    graphdef, state = load_state(model.checkpoint, dtype=jnp.float32)
    step = jax.jit(jax.value_and_grad(lambda state, batch: loss_of(graphdef, state, batch)))
    per_tile = model.engine.planner.tokens_per_tile
    apart = step(state, rows(laid, shape, per_tile, "apart"))
    long = RowShape(tokens=3 * shape.tokens, tiles=8, bins=1)
    together = step(state, rows(laid, long, per_tile, "together"))
    np.testing.assert_allclose(together[0], apart[0], rtol=1e-5)
    for (path, a), (_, b) in zip(nnx.to_flat_state(apart[1]), nnx.to_flat_state(together[1]), strict=True):
        scale = float(jnp.max(jnp.abs(a.get_value())))
        np.testing.assert_allclose(a.get_value(), b.get_value(), atol=1e-5 * scale + 1e-8, err_msg=str(path))
