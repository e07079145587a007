"""A model that no checkpoint is behind, such as one trained from nothing, as a checkpoint of Hugging Face's LLaVA.

A model holds only what it uses, while transformers' classes also want the tower's blocks after the feature layer, the
norm behind them and SigLIP's pooling head. Rather than inventing weights for them, the written config describes the
tower that there is: `num_hidden_layers` ends at the feature layer, which is then the last one (-1), and SigLIP's
`vision_use_head` is false. Only the final norm, which LLaVA never reads, is written as the identity.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.config import parse_config
from vila_jax.hf.keys import LLAVA
from vila_jax.hf.out_tensor import OutTensor, json_bytes
from vila_jax.hf.vision_config import LLAVA_TOWER
from vila_jax.nn.config import VLMConfig

_CLASSES = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}
_FINAL_NORM = "vision_tower.vision_model.post_layernorm"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")


@dataclasses.dataclass(frozen=True)
class NewModel:
    """What a state needs to become a checkpoint.

    Attributes:
      config: the `config.json`, of LLaVA or LLaVA-NeXT, that the state was built from.
      files: name -> contents of tokenizer, processor and generation files.
    """

    config: Mapping[str, Any]
    files: Mapping[str, str | bytes] = dataclasses.field(default_factory=dict)

    @property
    def vlm(self) -> VLMConfig:
        """The network.

        Raises:
          ConfigError: the config is not supported, or not that of a LLaVA.
        """
        config = parse_config(self.config)
        if config.layout != "llava":
            raise ConfigError(
                "a model without a checkpoint is written from the config of a LLaVA, and this is of a VILA",
                where="config.json",
                fix="Give the config of Hugging Face's LLaVA.",
            )
        return config.vlm

    def small_files(self, dtype: str) -> dict[str, bytes]:
        """All files but the weights; `config.json` is the last.

        Args:
          dtype: NumPy's name of the dtype that is stored.

        Raises:
          CheckpointError: the name of a file is not plain.
        """
        for name in self.files:
            if not _FILE_NAME.fullmatch(name):
                raise CheckpointError(f"{name!r} is not a plain file name", where="files")
        files = {name: data.encode() if isinstance(data, str) else data for name, data in self.files.items()}
        return files | {"config.json": json_bytes(written_config(self.config, self.vlm, dtype))}

    def tensors(self, arrays: Mapping[str, Any]) -> dict[str, OutTensor]:
        """What is written: the weights of a model, given by our path, and what transformers wants besides."""
        tensors = {name: OutTensor.of_array(name, a) for path, a in arrays.items() if (name := LLAVA.to_hf(path))}
        width = self.vlm.vision.hidden_size
        dtype = np.dtype(next(iter(arrays.values())).dtype)
        for leaf, values in (("weight", np.ones(width, dtype)), ("bias", np.zeros(width, dtype))):
            tensors[f"{_FINAL_NORM}.{leaf}"] = OutTensor.of_array(f"{_FINAL_NORM}.{leaf}", values)
        return tensors


def written_config(config: Mapping[str, Any], vlm: VLMConfig, dtype: str) -> dict[str, Any]:
    """The config as written: see the top of this file.

    Raises:
      ConfigError: the tower has no blocks.
    """
    written = copy.deepcopy(dict(config))
    depth = vlm.vision_depth
    if depth == 0:
        raise ConfigError("a tower without blocks cannot be exported", where="config.json: vision_feature_layer")
    vision = dict(written.get("vision_config") or LLAVA_TOWER)
    vision["num_hidden_layers"] = depth
    if vlm.vision.kind == "siglip":
        vision["vision_use_head"] = False
    layers = [layer - (depth + 1) for layer in vlm.feature_layers]
    written["vision_config"] = vision
    written["vision_feature_layer"] = layers if isinstance(config.get("vision_feature_layer"), list) else layers[0]
    tied = vlm.decoder.tie_embeddings
    written["tie_word_embeddings"] = tied
    written["text_config"] = dict(written.get("text_config") or {"model_type": "llama"}) | {"tie_word_embeddings": tied}
    written["architectures"] = [_CLASSES[written["model_type"]]]
    written.pop("torch_dtype", None)
    written["dtype"] = dtype
    return written
