"""The word-level tokenizer of the embedded model, in the files that Hugging Face tokenizers are published in."""

import json

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from train.scenes import captions, instructions
from vila_jax.scenes import VOCABULARY

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
PROMPT_WORDS = ("user", "assistant", ":", ",", "!")

# As in the published LLaVA checkpoints it writes no `<s>`: the tokenizer does.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer() -> Tokenizer:
    """Lower-cased words, single digits and punctuation; `<s>` is put in front."""
    words = dict.fromkeys((*SPECIAL, *PROMPT_WORDS, *VOCABULARY, *captions.WORDS, *instructions.WORDS))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def tokenizer_files() -> dict[str, str]:
    """Contents of `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "extra_special_tokens": {"image_token": "<image>"},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "padding_side": "left",
    }
    return {
        "tokenizer.json": build_tokenizer().to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "chat_template.jinja": CHAT_TEMPLATE,
    }


def token_settings() -> dict[str, int]:
    """The keys of a model's `config.json` that the tokenizer decides."""
    ids = {
        f"{name}_token_id": SPECIAL.index(token) for name, token in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>"))
    }
    return ids | {"image_token_index": SPECIAL.index("<image>"), "vocab_size": build_tokenizer().get_vocab_size()}
