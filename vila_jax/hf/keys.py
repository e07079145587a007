"""Names of tensors: one two-way table per layout, ours on the left, the checkpoint's on the right.

`#` stands for the number of a layer and `*` for the last part of the name (`weight` or `bias`). The right-hand side is
the spelling of the published checkpoints, which every version of transformers reads; it is also what export writes.
Other spellings under which checkpoints exist are brought to it by `KeyTable.canonical`.

The layouts name the same parts, under prefixes of their own:

               tower                                projector                  decoder             scorer
    llava      vision_tower.vision_model.*          multi_modal_projector.*    language_model.*    token_scorer.*
    folders    vision_tower/vision_model.*          mm_projector/layers.N.*    llm/*               token_scorer/*
    v1         model.vision_tower.vision_tower.*    model.mm_projector.N.*     *                   token_scorer.*

With folders, what stands before the slash is the folder, and the rest the name in its files. InternViT has names of its
own and no `vision_model`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from vila_jax.hf.model_config import Layout
from vila_jax.nn.config import ProjectorConfig, VLMConfig
from vila_jax.nn.projector_types import layer_indices

_TOWER = {  # CLIP and SigLIP: the latter has a patch bias, the former a class token and a norm (the typo is theirs)
    "embeddings.patch_weight": "vision_model.embeddings.patch_embedding.weight",
    "embeddings.patch_bias": "vision_model.embeddings.patch_embedding.bias",
    "embeddings.class_token": "vision_model.embeddings.class_embedding",
    "embeddings.position": "vision_model.embeddings.position_embedding.weight",
    "pre_norm.*": "vision_model.pre_layrnorm.*",
    "layers.#.norm1.*": "vision_model.encoder.layers.#.layer_norm1.*",
    "layers.#.attn.q.*": "vision_model.encoder.layers.#.self_attn.q_proj.*",
    "layers.#.attn.k.*": "vision_model.encoder.layers.#.self_attn.k_proj.*",
    "layers.#.attn.v.*": "vision_model.encoder.layers.#.self_attn.v_proj.*",
    "layers.#.attn.out.*": "vision_model.encoder.layers.#.self_attn.out_proj.*",
    "layers.#.norm2.*": "vision_model.encoder.layers.#.layer_norm2.*",
    "layers.#.fc1.*": "vision_model.encoder.layers.#.mlp.fc1.*",
    "layers.#.fc2.*": "vision_model.encoder.layers.#.mlp.fc2.*",
}

_INTERN_TOWER = {
    "embeddings.patch_weight": "embeddings.patch_embedding.weight",
    "embeddings.patch_bias": "embeddings.patch_embedding.bias",
    "embeddings.class_token": "embeddings.class_embedding",
    "embeddings.position": "embeddings.position_embedding",
    "layers.#.norm1.*": "encoder.layers.#.norm1.*",
    "layers.#.attn.qkv.*": "encoder.layers.#.attn.qkv.*",
    "layers.#.attn.q_norm.*": "encoder.layers.#.attn.q_norm.*",
    "layers.#.attn.k_norm.*": "encoder.layers.#.attn.k_norm.*",
    "layers.#.attn.out.*": "encoder.layers.#.attn.proj.*",
    "layers.#.scale1": "encoder.layers.#.ls1",
    "layers.#.norm2.*": "encoder.layers.#.norm2.*",
    "layers.#.fc1.*": "encoder.layers.#.mlp.fc1.*",
    "layers.#.fc2.*": "encoder.layers.#.mlp.fc2.*",
    "layers.#.scale2": "encoder.layers.#.ls2",
}

_LLAVA_PROJECTOR = {
    "projector.layers.0.*": "multi_modal_projector.linear_1.*",
    "projector.layers.1.*": "multi_modal_projector.linear_2.*",
    "newline": "image_newline",
}

_DECODER = {  # Llama, Mistral and Qwen2
    "embedding": "model.embed_tokens.weight",
    "layers.#.norm1.*": "model.layers.#.input_layernorm.*",
    "layers.#.attn.q.*": "model.layers.#.self_attn.q_proj.*",
    "layers.#.attn.k.*": "model.layers.#.self_attn.k_proj.*",
    "layers.#.attn.v.*": "model.layers.#.self_attn.v_proj.*",
    "layers.#.attn.out.*": "model.layers.#.self_attn.o_proj.*",
    "layers.#.norm2.*": "model.layers.#.post_attention_layernorm.*",
    "layers.#.mlp.gate.*": "model.layers.#.mlp.gate_proj.*",
    "layers.#.mlp.up.*": "model.layers.#.mlp.up_proj.*",
    "layers.#.mlp.down.*": "model.layers.#.mlp.down_proj.*",
    "norm.*": "model.norm.*",
    "head": "lm_head.weight",
}

_SCORER = ("norm.*", "fc1.*", "fc2.*")  # this library's own, of the same names on both sides

_LLAVA_ALIASES = (  # (spelling, canonical spelling), applied in this order
    # transformers >= 4.52 in memory: everything but the head under `model.`
    (re.compile(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.|image_newline$)"), ""),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^language_model\.(?!model\.|lm_head\.)"), "language_model.model."),
    # transformers >= 5 writes towers without the wrapper of old
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
)

_UNUSED_OF_TOWER = (  # what lies after the feature layer, and the text half of a whole CLIP or SigLIP
    r"vision_model\.(embeddings\.position_ids$|post_layernorm\.|head\.)"
    r"|text_model\.|(text|visual)_projection\.|logit_(scale|bias)$"
)


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """A renaming between our dotted paths and a checkpoint's names; both directions from one table.

    Attributes:
      patterns: (ours, canonical name in the checkpoint).
      aliases: (other spelling, canonical spelling), applied in this order.
      unused: finds the canonical names that checkpoints hold though no model has a use for them.
    """

    patterns: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[re.Pattern[str], str], ...]
    unused: re.Pattern[str]

    def canonical(self, name: str) -> str:
        """Brings any published spelling of a tensor's name to the canonical one."""
        for pattern, replacement in self.aliases:
            name = pattern.sub(replacement, name)
        return name

    def to_hf(self, path: str) -> str | None:
        """Canonical checkpoint name of one of our weights, None if it is not ours."""
        return _rename(path, self.patterns)

    def from_hf(self, name: str) -> str | None:
        """Our path of a name in any spelling, None if we have no such weight."""
        return _rename(self.canonical(name), ((theirs, ours) for ours, theirs in self.patterns))

    def is_unused(self, name: str, config: VLMConfig) -> bool:
        """Whether a model of this config has no use for a tensor that checkpoints hold all the same."""
        if self.unused.search(self.canonical(name)):
            return True
        path = self.from_hf(name) or ""
        if path == "decoder.head":
            return config.decoder.tie_embeddings
        block = re.match(r"vision_tower\.layers\.(\d+)\.", path)
        return block is not None and config.vision_depth <= int(block[1]) < config.vision.num_layers


def key_table(layout: Layout, config: VLMConfig) -> KeyTable:
    """The table of a checkpoint of this layout, total over the weights of a model of this config."""
    if layout == "llava":
        return LLAVA
    if layout == "folders":
        projector = _projector(config.projector, "mm_projector/layers.")
        return _table("vision_tower/", "llm/", "token_scorer/", config, projector)
    projector = _projector(config.projector, "model.mm_projector.")
    return _table("model.vision_tower.vision_tower.", "", "token_scorer.", config, projector)


def _table(tower: str, decoder: str, scorer: str, config: VLMConfig | None, projector: Mapping[str, str]) -> KeyTable:
    """The table of the parts under these prefixes.

    Args:
      config: of the model; None for LLaVA, whose projector and towers are of one form.
      projector: its rows, complete.
    """
    names = _INTERN_TOWER if config is not None and config.vision.kind == "intern" else _TOWER
    rows = {f"vision_tower.{ours}": f"{tower}{theirs}" for ours, theirs in names.items()}
    rows |= projector
    rows |= {f"decoder.{ours}": f"{decoder}{theirs}" for ours, theirs in _DECODER.items()}
    rows |= {f"scorer.{name}": f"{scorer}{name}" for name in _SCORER}
    aliases = _LLAVA_ALIASES if config is None else _projector_aliases(rows)
    # `inv_freq` is a buffer of old Llama versions
    unused = re.compile(rf"\.rotary_emb\.inv_freq$|^{re.escape(tower)}({_UNUSED_OF_TOWER})")
    return KeyTable(tuple(rows.items()), aliases, unused)


def _projector(config: ProjectorConfig, prefix: str) -> dict[str, str]:
    """The projector's modules are numbered together; a lone linear layer has no number."""
    if len(config.widths) == 2:
        return {"projector.layers.0.*": f"{prefix}*"}
    norms, layers = layer_indices(config)
    rows = {f"projector.norms.{i}.*": f"{prefix}{index}.*" for i, index in enumerate(norms)}
    return rows | {f"projector.layers.{i}.*": f"{prefix}{index}.*" for i, index in enumerate(layers)}


def _projector_aliases(rows: Mapping[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """`mlp1x_gelu` numbers its only layer, which `linear` does not."""
    lone = rows.get("projector.layers.0.*", "").removesuffix("*")
    if not lone or "projector.layers.1.*" in rows:
        return ()
    return ((re.compile(rf"^{re.escape(lone)}0\."), lone),)


def _rename(name: str, patterns: Iterable[tuple[str, str]]) -> str | None:
    for source, target in patterns:
        regex = re.escape(source).replace(r"\#", r"(?P<layer>\d+)").replace(r"\*", "(?P<leaf>weight|bias)")
        if match := re.fullmatch(regex, name):
            found = match.groupdict()
            return target.replace("#", found.get("layer", "")).replace("*", found.get("leaf", ""))
    return None


LLAVA = _table("vision_tower.", "language_model.", "token_scorer.", None, _LLAVA_PROJECTOR)


def canonical(name: str) -> str:
    """Brings any published spelling of a tensor's name in a LLaVA to the canonical one."""
    return LLAVA.canonical(name)
