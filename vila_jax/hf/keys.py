"""Names of tensors: one two-way table per part, ours on the left, Hugging Face's on the right.

`#` stands for the number of a layer and `*` for the last part of the name (`weight` or `bias`). The right-hand side is
the spelling of the published checkpoints, which every version of transformers reads; it is also what export writes.
Other spellings under which LLaVA checkpoints exist are brought to it by `canonical`.
"""

import dataclasses
import re
from collections.abc import Iterable

from vila_jax.nn.config import VLMConfig

_TOWER = {  # CLIP and SigLIP: the latter has a patch bias, the former a class token and a norm (the typo is theirs)
    "vision_tower.embeddings.patch_weight": "vision_tower.vision_model.embeddings.patch_embedding.weight",
    "vision_tower.embeddings.patch_bias": "vision_tower.vision_model.embeddings.patch_embedding.bias",
    "vision_tower.embeddings.class_token": "vision_tower.vision_model.embeddings.class_embedding",
    "vision_tower.embeddings.position": "vision_tower.vision_model.embeddings.position_embedding.weight",
    "vision_tower.pre_norm.*": "vision_tower.vision_model.pre_layrnorm.*",
    "vision_tower.layers.#.norm1.*": "vision_tower.vision_model.encoder.layers.#.layer_norm1.*",
    "vision_tower.layers.#.attn.q.*": "vision_tower.vision_model.encoder.layers.#.self_attn.q_proj.*",
    "vision_tower.layers.#.attn.k.*": "vision_tower.vision_model.encoder.layers.#.self_attn.k_proj.*",
    "vision_tower.layers.#.attn.v.*": "vision_tower.vision_model.encoder.layers.#.self_attn.v_proj.*",
    "vision_tower.layers.#.attn.out.*": "vision_tower.vision_model.encoder.layers.#.self_attn.out_proj.*",
    "vision_tower.layers.#.norm2.*": "vision_tower.vision_model.encoder.layers.#.layer_norm2.*",
    "vision_tower.layers.#.fc1.*": "vision_tower.vision_model.encoder.layers.#.mlp.fc1.*",
    "vision_tower.layers.#.fc2.*": "vision_tower.vision_model.encoder.layers.#.mlp.fc2.*",
}

_PROJECTOR = {
    "projector.layers.0.*": "multi_modal_projector.linear_1.*",
    "projector.layers.1.*": "multi_modal_projector.linear_2.*",
    "newline": "image_newline",
}

_DECODER = {  # Llama, Mistral and Qwen2
    "decoder.embedding": "language_model.model.embed_tokens.weight",
    "decoder.layers.#.norm1.*": "language_model.model.layers.#.input_layernorm.*",
    "decoder.layers.#.attn.q.*": "language_model.model.layers.#.self_attn.q_proj.*",
    "decoder.layers.#.attn.k.*": "language_model.model.layers.#.self_attn.k_proj.*",
    "decoder.layers.#.attn.v.*": "language_model.model.layers.#.self_attn.v_proj.*",
    "decoder.layers.#.attn.out.*": "language_model.model.layers.#.self_attn.o_proj.*",
    "decoder.layers.#.norm2.*": "language_model.model.layers.#.post_attention_layernorm.*",
    "decoder.layers.#.mlp.gate.*": "language_model.model.layers.#.mlp.gate_proj.*",
    "decoder.layers.#.mlp.up.*": "language_model.model.layers.#.mlp.up_proj.*",
    "decoder.layers.#.mlp.down.*": "language_model.model.layers.#.mlp.down_proj.*",
    "decoder.norm.*": "language_model.model.norm.*",
    "decoder.head": "language_model.lm_head.weight",
}

HEAD = _DECODER["decoder.head"]

_ALIASES = (  # (spelling, canonical spelling), applied in this order
    # transformers >= 4.52 in memory: everything but the head under `model.`
    (re.compile(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.|image_newline$)"), ""),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^language_model\.(?!model\.|lm_head\.)"), "language_model.model."),
    # transformers >= 5 writes towers without the wrapper of old
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
)

_NEVER_USED = re.compile(
    r"\.rotary_emb\.inv_freq$"  # a buffer of old Llama versions
    r"|^vision_tower\.vision_model\.(embeddings\.position_ids$|post_layernorm\.|head\.)"  # after the feature layer
)
_TOWER_BLOCK = re.compile(r"^vision_tower\.vision_model\.encoder\.layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """A renaming between our dotted paths and a checkpoint's canonical names; both directions from one table."""

    patterns: tuple[tuple[str, str], ...]

    def to_hf(self, path: str) -> str | None:
        """Canonical checkpoint name of one of our weights, None if it is not ours."""
        return _rename(path, self.patterns)

    def from_hf(self, name: str) -> str | None:
        """Our path of a canonical checkpoint name, None if we have no such weight."""
        return _rename(name, ((theirs, ours) for ours, theirs in self.patterns))


LLAVA = KeyTable((*_TOWER.items(), *_PROJECTOR.items(), *_DECODER.items()))


def canonical(name: str) -> str:
    """Brings any published spelling of a tensor's name to the canonical one."""
    for pattern, replacement in _ALIASES:
        name = pattern.sub(replacement, name)
    return name


def is_unused(name: str, config: VLMConfig) -> bool:
    """Whether a model of this config has no use for a tensor (canonical name) that checkpoints hold all the same."""
    if _NEVER_USED.search(name):
        return True
    if name == HEAD:
        return config.decoder.tie_embeddings
    block = _TOWER_BLOCK.match(name)
    return block is not None and config.vision_depth <= int(block[1]) < config.vision.num_layers


def _rename(name: str, patterns: Iterable[tuple[str, str]]) -> str | None:
    for source, target in patterns:
        regex = re.escape(source).replace(r"\#", r"(?P<layer>\d+)").replace(r"\*", "(?P<leaf>weight|bias)")
        if match := re.fullmatch(regex, name):
            found = match.groupdict()
            return target.replace("#", found.get("layer", "")).replace("*", found.get("leaf", ""))
    return None
