"""A checkpoint's `config.json` -> `ModelConfig`, whichever family it belongs to."""

from collections.abc import Mapping
from typing import Any

from vila_jax.errors import ConfigError
from vila_jax.hf.llava_config import parse_llava
from vila_jax.hf.model_config import ModelConfig
from vila_jax.hf.vila_config import parse_vila, vila_layout

__all__ = ["ModelConfig", "parse_config"]


def parse_config(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    *,
    preprocessor: Mapping[str, Any] | None = None,
    era: str | None = None,
) -> ModelConfig:
    """Reads the config of a LLaVA or VILA checkpoint.

    Args:
      config: contents of `config.json`; for VILA with the configs of the parts in it, as `Checkpoint.raw_config` is.
      generation: contents of `generation_config.json`, if there is one; its token ids win.
      preprocessor: contents of `preprocessor_config.json`, if there is one; VILA's pixel values follow from it.
      era: `v1`, `vila1.5` or `nvila` for a VILA checkpoint that does not show its own.

    Raises:
      ConfigError: a value that is missing, malformed or not supported.
    """
    layout = vila_layout(config)
    if layout is not None:
        return parse_vila(config, layout, generation, preprocessor, era)
    if era is not None:
        raise ConfigError(f"got {era!r}, but this is no VILA checkpoint", where="era", fix="Leave it out.")
    return parse_llava(config, generation)
