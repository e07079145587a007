"""Log-likelihoods of continuations against Hugging Face's logits, in batches and under budgets."""

import shutil

import numpy as np
import pytest
import torch

import vila_jax
from tests.infer.checkpoints import EOS, photo
from vila_jax.errors import BudgetError, PromptError
from vila_jax.infer.layout import Request
from vila_jax.infer.likelihood import in_order, make_probes

WIDE, SMALL = photo(33, 71), photo(20, 20)
CASES = [
    ("w5 w6 <image> w7 w8", [WIDE], [[9, 10, 11], [9, 10, 12], [13]]),
    ("w31 w32", [], [[40], [41], [42], [43], [44, 45, 46, 47, 48]]),
    ("<image> w33", [SMALL], [[EOS, 8]]),
]
TEMPLATE = """{% for turn in messages %}{% if turn.role == 'user' %}w5 {% for part in turn.content %}
{{- '<image>' if part.type == 'image' else part.text }} {% endfor %}w6
{%- else %} {{ turn.content[0].text }} </s>{% endif %}{% endfor %}"""
ASK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w7"}]}]


@pytest.fixture(scope="module")
def asked(model):
    """All contexts and continuations of the cases, those of one case sharing their context."""
    requests = [model.request(prompt, images) for prompt, images, _ in CASES]
    pairs = [(request, ids) for request, (*_, own) in zip(requests, CASES, strict=True) for ids in own]
    return tuple(map(list, zip(*pairs, strict=True)))


def theirs(written, prompt, images, ids) -> tuple[list[float], bool]:
    """What Hugging Face's logits say of a continuation."""
    inputs = written.processor(text=[prompt], images=images or None, return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    for name, more in (("input_ids", ids), ("attention_mask", [1] * len(ids))):
        inputs[name] = torch.cat([inputs[name], torch.tensor([more])], dim=1)
    with torch.no_grad():
        logits = written.model(**inputs).logits[0, width - 1 : -1]
    probs = torch.log_softmax(logits, -1)[torch.arange(len(ids)), torch.tensor(ids)]
    return probs.tolist(), logits.argmax(-1).tolist() == list(ids)


def test_against_hugging_face(model, written, asked):
    probes = make_probes(*asked)
    found = in_order(probes, model.engine.log_likelihoods(probes, budget=None))
    expected = [theirs(written, prompt, images, ids) for prompt, images, own in CASES for ids in own]
    for ours, (log_probs, is_greedy) in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.log_probs, log_probs, atol=1e-4)
        assert ours.total == pytest.approx(sum(log_probs), abs=1e-3)
        assert ours.is_greedy == is_greedy


@pytest.fixture(scope="module")
def chatty(written, tmp_path_factory):
    """The same model, with a chat template of its own."""
    folder = shutil.copytree(written.folder, tmp_path_factory.mktemp("likelihood") / "chat")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return vila_jax.from_pretrained(folder, dtype="float32")


def test_answers_to_a_conversation_against_hugging_face(chatty, written):
    answers, tokenizer = ["w9 w10", "w9 w11", "w12"], written.processor.tokenizer
    prompt = tokenizer.apply_chat_template(ASK, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True)
    found = chatty.log_likelihoods(ASK, answers, [WIDE])
    for answer, ours in zip(answers, found, strict=True):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        log_probs, is_greedy = theirs(written, prompt, [WIDE], [*ids, EOS])
        np.testing.assert_allclose(ours.log_probs, log_probs, atol=1e-4)
        assert ours.is_greedy == is_greedy


@pytest.mark.parametrize("answers", ["w9", []])
def test_answers_are_a_list(chatty, answers):
    with pytest.raises(PromptError, match="a list of answers"):
        chatty.log_likelihoods(ASK, answers, [WIDE])


def test_greedy_answers_are_greedy(model):
    request = model.request("w5 <image> w6", [WIDE])
    [answer] = _answer(model, request)
    other = [*answer[:-1], (answer[-1] + 1) % 90 + 4]
    probes = make_probes([request, request], [answer, other])
    found = in_order(probes, model.engine.log_likelihoods(probes, budget=None))
    assert [one.is_greedy for one in found] == [True, False]


def _answer(model, request) -> list[list[int]]:
    answers = model.answers_to([request], max_new_tokens=5, ignore_eos=True)
    for _ in answers:
        pass
    return [list(result.token_ids) for result in answers.results()]


def test_continuations_that_differ_in_their_last_token_share_a_row(asked):
    probes = make_probes(*asked)
    assert [probe.numbers for probe in probes] == [[0, 1], [2], [3, 4, 5, 6], [7], [8]]


def test_long_continuations_are_scored_in_chunks(model, written):
    ids = [4 + i % 90 for i in range(100)]
    probes = make_probes([model.request("w5")], [ids])
    [[found]] = model.engine.log_likelihoods(probes, budget=None)
    np.testing.assert_allclose(found.log_probs, theirs(written, "w5", [], ids)[0], atol=1e-4)


def test_requests_of_one_bucket_share_a_program(model, count_compilations):
    def ask(text: str, ids: list[list[int]]) -> None:
        request = model.request(text)
        model.engine.log_likelihoods(make_probes([request] * len(ids), ids), budget=None)

    ask("w7 w8 w9", [[5, 6, 7]])
    with count_compilations() as count:
        ask("w10 w11", [[5, 6, 7, 8]])
        ask("w12 w13 w14", [[1], [2], [3]])
    assert count() == 0


@pytest.mark.parametrize("budget", ["hired:6", "hired:0.4"])
def test_with_fewer_visual_tokens(model, budget):
    """Against the logits of the same prompt, which have oracles of their own."""
    request = model.request("w5 <image> w6 w7 w8", [WIDE], budget=budget)
    logits = model.logits("w5 <image> w6 w7 w8", [WIDE], budget=budget)
    context = Request(request.token_ids[:-2], request.media)
    probes = make_probes([context], [request.token_ids[-2:]])
    [[found]] = model.engine.log_likelihoods(probes, budget=vila_jax.Budget.parse(budget))
    rows = torch.log_softmax(torch.tensor(logits[-3:-1]), -1)
    np.testing.assert_allclose(found.log_probs, rows[torch.arange(2), torch.tensor(request.token_ids[-2:])], atol=1e-5)


def test_budgets_inside_the_decoder_score_single_tokens(model):
    budget = "fastv:4,layer=1"
    logits = model.logits("w5 <image> w6", [WIDE], budget=budget)
    request = model.request("w5 <image> w6", [WIDE], budget=budget)
    parsed = vila_jax.Budget.parse(budget)
    [[one, two]] = model.engine.log_likelihoods(make_probes([request] * 2, [[7], [8]]), budget=parsed)
    expected = torch.log_softmax(torch.tensor(logits[-1]), -1)[[7, 8]]
    np.testing.assert_allclose([one.total, two.total], expected, atol=1e-5)
    with pytest.raises(BudgetError, match="several tokens"):
        model.engine.log_likelihoods(make_probes([request], [[7, 8]]), budget=parsed)


@pytest.mark.parametrize(("continuations", "match"), [([[]], "continuation 0: it is empty"), ([[1], [2]], "2 contin")])
def test_refused(model, continuations, match):
    with pytest.raises(PromptError, match=match):
        make_probes([model.request("w5")], continuations)
