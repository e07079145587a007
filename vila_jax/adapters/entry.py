"""What `lmms-eval` finds by the entry point group `lmms_eval.models`.

It is imported whenever `lmms-eval` starts, whatever model is asked for, and one entry point that fails hides those of
all other packages: so this imports nothing of ours and names the classes by their paths.
"""

from typing import Any


def manifest() -> Any:
    """The `ModelManifest` of this package: `--model vila_jax`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="vila_jax",
        simple_class_path="vila_jax.adapters.lmms_simple.VilaSimple",
        chat_class_path="vila_jax.adapters.lmms_chat.VilaChat",
    )
