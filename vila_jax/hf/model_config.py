"""`ModelConfig`, what every layout of checkpoint is parsed into, and the readers that the layouts share."""

import dataclasses
from typing import Literal

from vila_jax.hf.section import Section, supported
from vila_jax.nn.config import VLMConfig
from vila_jax.vision.pooling import VideoConfig
from vila_jax.vision.vila_config import VilaPictures

Layout = Literal["llava", "folders", "v1"]
"""How the files lie: Hugging Face's LLaVA; VILA1.5 and NVILA with a folder for each part; VILA v1 in one folder."""

Era = Literal["v1", "vila1.5", "nvila"]
"""Which generation of VILA's code a checkpoint was trained with: it decides token order and prompt convention."""

IMAGE_PLACEHOLDER = -200
"""VILA's placeholder of a picture among token ids: it is outside every vocabulary."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that the JSON files of a checkpoint say about a model.

    Attributes:
      vlm: the network.
      model_type: `llava`, `llava_next` or `vila`.
      architecture: name for display, such as `LLaVA-NeXT (CLIP + Mistral)`.
      image_token_id: id of the placeholder of visual tokens in a prompt. For VILA it is -200: NVILA's own media tokens
        are the tokenizer's to tell, their ids need not be rows of the embedding.
      grid_pinpoints: resolutions `(height, width)` that a picture may be tiled to; None for one tile per picture, and
        for VILA.
      eos_ids: ids that end an answer.
      context_length: positions that the model was made for.
      layout: how its files lie and its tensors are named.
      era: generation of VILA; None for LLaVA.
      era_reason: what in the checkpoint shows the era.
      pictures: how VILA cuts pictures; None for LLaVA, whose processor files say it.
      template: `chat_template` of VILA's root config.
      position_resize: how the tower's positions are resized at load, if they are of another size than its tiles.
      video: how videos are sampled and encoded.
    """

    vlm: VLMConfig
    model_type: str
    architecture: str
    image_token_id: int
    grid_pinpoints: tuple[tuple[int, int], ...] | None
    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int | None
    context_length: int
    layout: Layout = "llava"
    era: Era | None = None
    era_reason: str = ""
    pictures: VilaPictures | None = None
    template: str | None = None
    position_resize: Literal["linear", "bicubic"] | None = None
    video: VideoConfig = dataclasses.field(default_factory=VideoConfig)

    @property
    def max_tiles(self) -> int:
        """Most tiles that the geometry of a picture can have."""
        size = self.vlm.vision.image_size
        if self.pictures is None:
            return 1 + max((height // size * (width // size) for height, width in self.grid_pinpoints or ()), default=0)
        most = self.pictures.max_tiles
        return {"dynamic": most + (most > 1), "dynamic_s2": most}.get(self.pictures.mode, 1)

    @property
    def max_tower_tiles(self) -> int:
        """Most tiles of a picture that the tower sees, those of all scales together."""
        if self.pictures is None or not self.pictures.scales:
            return self.max_tiles
        squares = [(scale // self.pictures.tile_size) ** 2 for scale in self.pictures.scales]
        return sum(squares[:-1]) + (self.max_tiles if self.pictures.mode == "dynamic_s2" else squares[-1])


def scorer_width(top: Section) -> int | None:
    """Hidden width of the token scorer that this library may add to any model; None without one."""
    if top.get("token_scorer") is None:
        return None
    return top.section("token_scorer").integer("hidden_size", 0)


def token_ids(sources: tuple[Section, ...], key: str) -> tuple[int, ...]:
    """The first of `sources` that has the key decides; a list is as good as a number."""
    for source in sources:
        value = source.get(key)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise source.error(key, "a token id or a list of them", supported(["null", "an id", "a list of ids"]))
        return tuple(ids)
    return ()


def first_id(sources: tuple[Section, ...], key: str) -> int | None:
    """As `token_ids`, for a key of which one id is wanted."""
    return next(iter(token_ids(sources, key)), None)


def feature_layers(top: Section, key: str, num_layers: int, *, several: bool) -> tuple[int, ...]:
    """Hidden states that feed the projector, as indices `0..num_layers`, 0 being the embeddings.

    Args:
      key: the key under which the config names them.
      num_layers: blocks of the tower.
      several: whether a list is as good as a number.
    """
    value = top.get(key, -2)
    layers = value if several and isinstance(value, list) else [value]
    states = num_layers + 1
    valid = [isinstance(i, int) and not isinstance(i, bool) and -states <= i < states for i in layers]
    if not layers or not all(valid):
        raise top.error(key, f"hidden states of a tower of {num_layers} blocks, {-states} to {num_layers}")
    return tuple(i % states for i in layers)
