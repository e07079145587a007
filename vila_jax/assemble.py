"""What stands beside the weights of a model, made from its checkpoint: prompts, conversation style, preprocessing."""

from vila_jax.errors import CheckpointError, ConfigError
from vila_jax.hf.checkpoint import Checkpoint
from vila_jax.text.prompts import PromptForm, prompt_form, vila_tokenizer
from vila_jax.text.styles import Style, get_style, style_for
from vila_jax.text.tokenizer import Tokenizer
from vila_jax.text.vila_styles import vila_style_for
from vila_jax.vision.preprocess import PreprocessConfig, Preprocessor
from vila_jax.vision.vila import VilaPreprocessor

STYLE_KEY = "conversation_style"
"""Key of the root config that names the conversation style; this library's own, other readers pass over it."""


def make_form(checkpoint: Checkpoint) -> PromptForm:
    """The tokenizer of a checkpoint, and how it is used.

    Raises:
      CheckpointError: it is missing or damaged, or has more tokens than the model has embeddings.
    """
    config = checkpoint.config
    if config.era is None:
        tokenizer = Tokenizer.from_folder(checkpoint.folder, image_token_id=config.image_token_id)
        return prompt_form(tokenizer, None)
    tokenizer = vila_tokenizer(checkpoint.tokenizer_folder)
    if tokenizer.stored_size > config.vlm.decoder.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.stored_size:,} tokens, but the language model only "
            f"{config.vlm.decoder.vocab_size:,} embeddings",
            where=str(checkpoint.tokenizer_folder),
            fix="Use the tokenizer that was published with these weights.",
        )
    dynamic, tsp = config.pictures is not None and config.pictures.mode == "dynamic", config.video.tsp
    pool_texts = None if tsp is None else (tsp.start_tokens, tsp.end_tokens, tsp.sep_tokens)
    return prompt_form(tokenizer, config.era, dynamic=dynamic, pool_texts=pool_texts)


def make_style(
    checkpoint: Checkpoint, tokenizer: Tokenizer | None, name: str, chosen: str | None = None
) -> Style | None:
    """The conversation style of a checkpoint that is called `name`; None where its own chat template is used.

    Raises:
      ConfigError: an unknown style, or none is known for this decoder.
    """
    config, raw = checkpoint.config, checkpoint.raw_config
    chosen = raw.get(STYLE_KEY) if chosen is None else chosen
    if config.era is None:
        decoder = (raw.get("text_config") or {}).get("model_type", "llama")
        return style_for(decoder, name) if chosen is None else get_style(chosen)
    decoder = (raw.get("llm_cfg") or {}).get("model_type") or raw.get("model_type", "llama")
    return vila_style_for(
        decoder.removeprefix("llava_"),
        name,
        era=config.era,
        chosen=chosen,
        template=config.template,
        has_own_template=tokenizer is not None and tokenizer.chat_template is not None,
    )


def make_preprocessor(checkpoint: Checkpoint) -> Preprocessor | VilaPreprocessor:
    """The preprocessing that the checkpoint's own files describe.

    Raises:
      ConfigError: there is none, or it contradicts the model's config.
    """
    if checkpoint.config.pictures is not None:
        return VilaPreprocessor(checkpoint.config.pictures)
    vision, model_type = checkpoint.config.vlm.vision, checkpoint.config.model_type
    files = checkpoint.processor.get("image_processor") or checkpoint.preprocessor
    config = PreprocessConfig.from_hf(files, model_type=model_type)
    if config.tile_size != vision.image_size:
        raise ConfigError(
            f"pictures are prepared at {config.tile_size} pixels, but the vision tower expects {vision.image_size}",
            where=f"{checkpoint.folder}/preprocessor_config.json",
            fix="Use the processor files that were published with this model.",
        )
    if set(config.pinpoints or ()) != set(checkpoint.config.grid_pinpoints or ()):
        raise ConfigError(
            f"pictures are cut along {config.pinpoints}, but the model expects {checkpoint.config.grid_pinpoints}",
            where=f"{checkpoint.folder}, key `image_grid_pinpoints`",
            fix="Use the processor files that were published with this model.",
        )
    return Preprocessor(config, vision.patch_size)
