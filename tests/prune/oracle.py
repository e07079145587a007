"""Pruning by masking, in torch: what the weakest units contribute is set to zero."""

import contextlib
import dataclasses

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from vila_jax.hf.load import load_state

IMAGE_TOKEN = 96
PATCHES = 16


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A prompt with one picture, tokenised by hand."""

    ids: torch.Tensor
    pixels: torch.Tensor
    image_sizes: torch.Tensor | None

    @classmethod
    def of(cls, model) -> "Inputs":
        """For a LLaVA one tile; for a LLaVA-NeXT an overview and two tiles of a wide picture, with newlines."""
        generator = torch.Generator().manual_seed(5)
        next_ = model.config.model_type == "llava_next"
        visual = PATCHES + (4 * (8 + 1) if next_ else 0)
        text = torch.randint(0, IMAGE_TOKEN, (9,), generator=generator)
        ids = torch.cat([text[:3], torch.full((visual,), IMAGE_TOKEN), text[3:]])[None]
        pixels = torch.randn((1, 3, 3, 28, 28) if next_ else (1, 3, 28, 28), generator=generator)
        return cls(ids, pixels, torch.tensor([[28, 56]]) if next_ else None)

    def through(self, checkpoint) -> np.ndarray:
        """Logits of our model, its visual tokens spliced in by hand."""
        model = nnx.merge(*load_state(checkpoint, dtype="float32"))
        pixels = jnp.asarray(self.pixels.reshape(-1, 3, 28, 28).numpy())
        features, _ = model.encode(pixels)
        tokens = np.asarray(model.project(model.merge(features)))
        if self.image_sizes is not None:
            left, right = (tile.reshape(4, 4, -1) for tile in tokens[1:])
            newline = np.broadcast_to(np.asarray(model.newline[...]), (4, 1, tokens.shape[-1]))
            wide = np.concatenate([left, right, newline], axis=1)
            tokens = np.concatenate([tokens[0], wide.reshape(-1, tokens.shape[-1])])
        tokens = tokens.reshape(-1, tokens.shape[-1])
        ids = self.ids.numpy().astype(np.int32)
        source = np.where(ids == IMAGE_TOKEN, np.cumsum(ids == IMAGE_TOKEN) - 1, -1).astype(np.int32)
        embedded = model.splice(jnp.asarray(ids), jnp.asarray(source), jnp.asarray(tokens))
        hidden, _ = model.decoder(embedded, jnp.arange(ids.shape[1])[None])
        return np.asarray(model.decoder.logits(hidden))


def logits(model, inputs: Inputs) -> np.ndarray:
    more = {} if inputs.image_sizes is None else {"image_sizes": inputs.image_sizes}
    with torch.no_grad():
        return model.eval()(input_ids=inputs.ids, pixel_values=inputs.pixels, **more).logits.numpy()


def tower_blocks(model) -> list:
    tower = model.model.vision_tower
    return list(getattr(tower, "vision_model", tower).encoder.layers)


def last_layers(model) -> dict[str, torch.nn.Linear]:
    """Our name of a part -> the linear layer whose columns its units own."""
    found = {f"vision_tower.layers.{i}/vision_ffn": block.mlp.fc2 for i, block in enumerate(tower_blocks(model))}
    for i, layer in enumerate(model.model.language_model.layers):
        found |= {f"decoder.layers.{i}/ffn": layer.mlp.down_proj, f"decoder.layers.{i}/heads": layer.self_attn.o_proj}
    return found


def kept_units(model, ffn: int, vision_ffn: int, heads: int, means=None) -> dict[str, torch.Tensor]:
    """By magnitude, or by the means of the parts that have them: part -> whether each of its units stays."""
    scores = {}
    for i, block in enumerate(tower_blocks(model)):
        squares = block.mlp.fc1.weight.square().sum(1) + block.mlp.fc2.weight.square().sum(0)
        scores[f"vision_tower.layers.{i}/vision_ffn"] = squares
    for i, layer in enumerate(model.model.language_model.layers):
        mlp, attn = layer.mlp, layer.self_attn
        rows = mlp.gate_proj.weight.square().sum(1) + mlp.up_proj.weight.square().sum(1)
        scores[f"decoder.layers.{i}/ffn"] = rows + mlp.down_proj.weight.square().sum(0)
        groups = attn.config.num_key_value_heads
        parts = [projection.weight.square().sum(1) for projection in (attn.q_proj, attn.k_proj, attn.v_proj)]
        parts.append(attn.o_proj.weight.square().sum(0))
        scores[f"decoder.layers.{i}/heads"] = sum(part.reshape(groups, -1).sum(1) for part in parts)
    scores |= means or {}
    counts = {"ffn": ffn, "vision_ffn": vision_ffn, "heads": heads}
    return {name: _largest(score, counts[name.rpartition("/")[2]]) for name, score in scores.items()}


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[torch.topk(scores, count).indices] = True
    return kept


@contextlib.contextmanager
def masking(model, kept: dict[str, torch.Tensor]):
    """Sets what the other units contribute to zero."""

    def zero(units: torch.Tensor):
        def hook(_, entered):
            [x] = entered
            return (x * units.repeat_interleave(x.shape[-1] // len(units)),)

        return hook

    with contextlib.ExitStack() as stack:
        for name, linear in last_layers(model).items():
            stack.callback(linear.register_forward_pre_hook(zero(kept[name])).remove)
        yield


def inputs_of(model, run) -> dict[str, torch.Tensor]:
    """What enters the last layer of every part while `run()` runs, `[batch, tokens, width]`."""
    found: dict[str, torch.Tensor] = {}

    def remember(name: str):
        return lambda _, entered: found.__setitem__(name, entered[0].detach())

    with contextlib.ExitStack() as stack:
        for name, linear in last_layers(model).items():
            stack.callback(linear.register_forward_pre_hook(remember(name)).remove)
        run()
    return found
