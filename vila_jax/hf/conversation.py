"""The conversation of a VILA in the files of Hugging Face's LLaVA: its chat template, and what ends an answer.

VILA's code knows both by the name of a model and its era; transformers only knows what stands in the files.
"""

import json
from collections.abc import Mapping

from vila_jax.assemble import make_form, make_style
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.hf.out_tensor import json_bytes
from vila_jax.text.as_template import chat_template, without_ours
from vila_jax.text.prompts import VilaForm
from vila_jax.text.vila_styles import VILA_STYLES

OWN = "own"
"""Instead of the name of a style, where the chat template of the checkpoint speaks."""

TEMPLATE = "chat_template.jinja"


def conversation_files(checkpoint: Checkpoint, style: str | None) -> tuple[str, dict[str, bytes]]:
    """`chat_template.jinja`; and `generation_config.json`, if answers end with more than it says.

    Args:
      checkpoint: of a VILA.
      style: name of a conversation style; None for the one that the checkpoint asks for.

    Returns:
      Name of the style that they speak, or `OWN`; and the files.

    Raises:
      ConfigError: an unknown style, or none is known for this decoder.
      CheckpointError: the tokenizer is missing, damaged, or cannot tokenise prompts as a whole.
    """
    form = make_form(checkpoint)
    assert isinstance(form, VilaForm)
    chosen = make_style(checkpoint, form.tokenizer, checkpoint.name, style)
    files = {TEMPLATE: chat_template(form, chosen).encode()}
    ends = list(dict.fromkeys((*checkpoint.config.eos_ids, *form.stop_ids(chosen))))
    if set(ends) != set(checkpoint.config.eos_ids):
        files["generation_config.json"] = json_bytes(checkpoint.generation | {"eos_token_id": ends})
    return next((name for name, known in VILA_STYLES.items() if known is chosen), OWN), files


def without_conversation(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a tokenizer without a template of ours, which VILA's code has no use for; its own is put back."""
    kept = {name: data for name, data in files.items() if name != TEMPLATE}
    own = without_ours(files[TEMPLATE].decode()) if TEMPLATE in files else None
    declared = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
    return kept if own is None or own == declared else kept | {TEMPLATE: own.encode()}
