"""Labels against those of the reference, by its main branch and by the older one."""

import json

import numpy as np
import pytest

from tests.train.data.forms import golden_forms
from train.data.labels import IGNORED, conversation_tokens
from vila_jax.errors import PromptError
from vila_jax.text.styles import STYLES
from vila_jax.text.vila_styles import get_vila_style, vila_style_for


@pytest.fixture(scope="module")
def forms(golden):
    return golden_forms(golden)


def records(golden, branch):
    return json.loads((golden / "vila" / "data" / f"label_masking_{branch}.json").read_text())


def conversation(record):
    roles = {"human": "user", "gpt": "assistant"}
    turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in record["conversation"]]
    return [{"role": "system", "content": ""}, *turns] if record["no_system_prompt"] else turns


def pictures(messages):
    return [1] * json.dumps(messages).count("<image>")


def test_labels_of_the_main_branch(golden, forms):
    for record in records(golden, "main"):
        mode, messages = record["conv_mode"], conversation(record)
        form = forms["llama_3" if mode == "llama_3" else record["tokenizer"]]
        style = vila_style_for("", era="nvila", chosen=mode, has_own_template=mode == "auto")
        ids, targets = conversation_tokens(form, messages, style, pictures(messages))
        assert ids.tolist() == record["input_ids"] and targets.tolist() == record["labels"], record


def test_labels_of_the_older_branch(golden, forms):
    for record in records(golden, "vila15"):
        messages = conversation(record)
        if record["conv_mode"] == "plain":
            messages[0] = {"role": "user", "content": [{"type": "image"}]}
        style = get_vila_style(record["conv_mode"])
        ids, targets = conversation_tokens(forms["old"], messages, style, pictures(record["conversation"]))
        assert ids.tolist() == record["input_ids"], record
        assert targets.tolist() == record["labels"], (record["conv_mode"], record["tokens"], targets.tolist())


def test_what_is_never_learned(forms):
    messages = [{"role": "user", "content": "<image>How many?"}, {"role": "assistant", "content": "five <image>"}]
    ids, targets = conversation_tokens(forms["bytelevel_bpe"], messages, get_vila_style("qwen2"), [2, 1])
    form = forms["bytelevel_bpe"]
    assert np.sum(ids == form.image_id) == 3 and not np.any(targets == form.image_id)
    assert np.all((targets == IGNORED) | (targets == ids)) and np.any(targets != IGNORED)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "does not end with an answer"),
        ([{"role": "user", "content": "a"}], "does not end with an answer"),
        ([{"role": "assistant", "content": "a"}], "alternate"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "empty"),
        ([{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a"}], "image"),
    ],
)
def test_conversations_that_cannot_be_learned_from(forms, messages, error):
    for form in forms["old"], forms["sentencepiece"]:
        with pytest.raises(PromptError, match=error):
            conversation_tokens(form, messages, STYLES["vicuna_v1"])
