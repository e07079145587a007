"""The language model for lm-eval, as its evaluator calls it, against the model's own logits."""

import numpy as np
import pytest

from tests.adapters import stand_ins
from tests.adapters.stand_ins import Instance
from vila_jax.errors import PromptError
from vila_jax.infer.layout import Request

QUESTION = "USER: what color is the circle ? ASSISTANT:"


@pytest.fixture(scope="module")
def lm(log, folder):
    return stand_ins.adapter("lm_eval").VilaLM(folder, batch_size="3", device="cpu", dtype="auto")


def log_probs(model, read: list[int], targets: list[int]) -> np.ndarray:
    """Of the last tokens that follow what is read; the last target itself is not read."""
    rows = model.engine.logits(Request(read), budget=None)[-len(targets) :]
    return (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))[np.arange(len(targets)), targets]


def test_log_likelihoods(lm, model):
    pairs = [
        (QUESTION, " red"),
        (QUESTION, " blue"),
        ("", "red circle"),
        (QUESTION, " red circle"),
        ("what", " is this ?"),
    ]
    found = lm.loglikelihood([Instance(pair) for pair in pairs])
    for (context, continuation), (total, is_greedy) in zip(pairs, found, strict=True):
        before = model.tokenizer.encode(context)
        targets = model.tokenizer.encode(continuation, add_special_tokens=False)
        read = [*before, *targets[:-1]]
        assert total == pytest.approx(log_probs(model, read, targets).sum(), abs=1e-3)
        rows = model.engine.logits(Request(read), budget=None)[-len(targets) :]
        assert is_greedy == (rows.argmax(1).tolist() == targets)
    assert [kept[:2] for kept in lm.cache_hook.kept[-5:]] == [("loglikelihood", pair) for pair in pairs]


def test_contexts_that_are_too_long_lose_their_beginning(lm, model):
    context, targets = [5 + i % 90 for i in range(lm.max_length + 50)], [20, 21]
    [(total, _)] = lm._loglikelihood_tokens([(None, context, targets)])
    read = [*context, targets[0]][-lm.max_length :]
    assert total == pytest.approx(log_probs(model, read, targets).sum(), abs=1e-3)


def test_whole_texts_are_scored_in_windows(lm, model):
    words = ["red", "blue", "circle", "what", "is", "this"]
    text = " ".join(words[i * i % 6] for i in range(lm.max_length + 7))
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == lm.max_length + 7
    [total, short] = lm.loglikelihood_rolling([Instance((text,)), Instance(("red circle",))])
    head = log_probs(model, [model.tokenizer.bos_id, *ids[: lm.max_length - 1]], ids[: lm.max_length])
    rest = log_probs(model, ids[6:-1], ids[-7:])
    assert total == pytest.approx(head.sum() + rest.sum(), rel=1e-5)
    assert short == pytest.approx(lm.loglikelihood([Instance(("", "red circle"))])[0][0], abs=1e-4)


def test_answers_go_until_they_are_stopped(lm, model):
    arguments = [{"until": ["\n"], "max_gen_toks": 6}, {"until": [], "max_gen_toks": 2, "do_sample": False}]
    prompts = [QUESTION, "which word is on the sign ?", "red"]
    requests = [Instance((prompt, arguments[i % 2])) for i, prompt in enumerate(prompts)]
    expected = [
        model.generate(prompt, max_new_tokens=(6, 2)[i % 2], stop=["\n"][: 1 - i % 2]).text
        for i, prompt in enumerate(prompts)
    ]
    assert lm.generate_until(requests) == expected
    assert lm.cache_hook.kept[-1] == ("generate_until", requests[-1].args, expected[-1])


def test_prompts_that_leave_no_room_lose_their_beginning(lm, model):
    text = "red " * (lm.max_length + 20)
    [answer] = lm.generate_until([Instance((text, {"max_gen_toks": 4}))])
    ids = model.tokenizer.encode(text)[-(lm.max_length - 4) :]
    answers = model.answers_to([Request(ids)], max_new_tokens=4)
    for _ in answers:
        pass
    assert answer == answers.results()[0].text
    with pytest.raises(PromptError, match="are to follow"):
        lm.generate_until([Instance(("red", {"max_gen_toks": lm.max_length + 1}))])


def test_conversations_are_written_as_the_model_was_trained(lm, model):
    history = [{"role": "user", "content": "what is this ?"}]
    assert lm.apply_chat_template(history) == model.form.render(history, model.style)
    assert lm.chat_template(True) == model.tokenizer.chat_template
    assert lm.chat_template(False) is None
    assert "/" not in lm.tokenizer_name


def test_bos_is_written_once(lm):
    bos = lm.prefix_token_id
    assert lm.tok_encode("red") == lm.tok_encode("<s>red") == [bos, *lm.tok_encode("red", add_special_tokens=False)]
    assert lm.tok_decode(lm.tok_encode("red")) == "red"


def test_nothing_asked_is_nothing_answered(lm):
    assert lm.loglikelihood([]) == lm.generate_until([]) == lm.loglikelihood_rolling([]) == []
