"""The classes for lmms-eval, as its evaluator calls them, against the model's own answers."""

import importlib
import pathlib
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

from tests.adapters import stand_ins
from tests.adapters.stand_ins import Instance
from tests.adapters.test_bulk import picture
from vila_jax.errors import ConfigError, PromptError

DOCS = [
    {"question": "what color is the circle ?", "image": picture(0)},
    {"question": "how many shapes are there ?", "image": None},
    {"question": "which word is on the sign ?", "image": picture(1, 48, 110)},
    {"question": "what shape is at the top left ?", "image": picture(2)},
]
SHORT = {"max_new_tokens": 5, "until": "\n\n"}


def doc_to_visual(doc) -> list[Image.Image]:
    return [] if doc["image"] is None else [doc["image"]]


def doc_to_messages(doc):
    shown = [{"type": "image", "url": image} for image in doc_to_visual(doc)]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": doc["question"]}]}]


@pytest.fixture(scope="module")
def make(log, folder):
    """Makes either class with the documents of one task, the way the harness does."""

    def make(module: str, name: str, **arguments):
        command_line = {"batch_size": "2", "max_batch_size": None, "device": "cpu"}
        made = getattr(stand_ins.adapter(module), name).create_from_arg_string(
            {"pretrained": folder, **arguments}, command_line
        )
        made.task_dict = {"scenes": {"test": DOCS}}
        return made

    return make


@pytest.fixture(scope="module")
def simple(make):
    return make("lmms_simple", "VilaSimple")


@pytest.fixture(scope="module")
def chat(make):
    return make("lmms_chat", "VilaChat")


def simple_request(i: int, arguments=SHORT, context: str | None = None) -> Instance:
    return Instance((context or DOCS[i]["question"], dict(arguments), doc_to_visual, i, "scenes", "test"))


def chat_request(i: int) -> Instance:
    return Instance((DOCS[i]["question"], doc_to_messages, dict(SHORT), i, "scenes", "test"))


def expected(model, i: int, **options):
    return model.generate(messages=doc_to_messages(DOCS[i]), max_new_tokens=5, **options)


def same(results, answers) -> None:
    assert [result.text for result in results] == [answer.text for answer in answers]
    counts = [(result.token_counts.input_tokens, result.token_counts.output_tokens) for result in results]
    assert counts == [(answer.usage.prompt_tokens, answer.usage.completion_tokens) for answer in answers]


def test_simple_answers_in_the_order_asked(simple, model):
    results = simple.generate_until([simple_request(i) for i in (2, 1, 0, 3, 2)])
    same(results, [expected(model, i) for i in (2, 1, 0, 3, 2)])


def test_chat_answers_in_the_order_asked(chat, model):
    results = chat.generate_until([chat_request(i) for i in (3, 1, 2)])
    same(results, [expected(model, i) for i in (3, 1, 2)])


def test_the_context_may_mark_its_pictures(simple, model):
    text = "at the left <image> what color is this ?"
    [result] = simple.generate_until([simple_request(0, context=text)])
    messages = [{"role": "user", "content": text}]
    same([result], [model.generate(messages=messages, images=[DOCS[0]["image"]], max_new_tokens=5)])


def test_stop_strings_end_answers(simple, model):
    whole = expected(model, 2).text
    stop = whole[len(whole) // 2 :]
    [result] = simple.generate_until([simple_request(2, {"max_new_tokens": 5, "until": [stop]})])
    assert stop
    assert result.text == whole[: whole.index(stop)]


def test_budgets_show_in_the_token_counts(make, model, log):
    budgeted = make("lmms_simple", "VilaSimple", budget=6)
    results = budgeted.generate_until([simple_request(0), simple_request(1)])
    same(results, [expected(model, i, budget="hired:6") for i in (0, 1)])
    less = expected(model, 0).usage.prompt_tokens - results[0].token_counts.input_tokens
    assert less == model.count_tokens((48, 48)) - 6 > 0
    assert "with budget hired:6: 3.0 of" in log.infos[-1]


def test_sampled_repeats_differ(simple, model):
    arguments = {"max_new_tokens": 5, "do_sample": True, "temperature": 1.0}
    results = simple.generate_until([simple_request(0, arguments)] * 3)
    same(results, [expected(model, 0, temperature=1.0, seed=seed) for seed in range(3)])
    assert len({result.text for result in results}) > 1


def test_a_document_that_cannot_be_read_is_answered_with_nothing_and_said(simple, model, log):
    broken = Instance(("<image> <image> which ?", dict(SHORT), doc_to_visual, 0, "scenes", "test"))
    results = simple.generate_until([broken, simple_request(1)])
    assert (results[0].text, results[0].token_counts) == ("", None)
    same(results[1:], [expected(model, 1)])
    assert "request 0 cannot be read" in log.errors[-2]
    assert "1 of 2 requests" in log.errors[-1]
    with pytest.raises(PromptError, match="2 <image> marks"):
        simple.generate_until([broken])


def doc_to_text(doc, *, previous_output, round_idx, previous_round_info):
    """Asks twice; three times where there is no picture. What it is told must be what it said."""
    assert (previous_round_info or 0) == round_idx - 1
    assert len(previous_output) == round_idx
    outputs = [*previous_output[:-1], f"{round_idx}: {previous_output[-1]}"]
    over = round_idx == (3 if doc["image"] is None else 2)
    return doc_to_visual(doc), "what else ?", over, outputs, round_idx


def messages_of_round(doc, round_idx=None, **told):
    if round_idx is None:
        return doc_to_messages(doc)
    _, text, over, outputs, info = doc_to_text(doc, round_idx=round_idx, **told)
    return doc_to_messages({**doc, "question": text}), over, outputs, info


def check_rounds(results, model) -> None:
    for result, i, rounds in zip(results, (0, 1), (2, 3), strict=True):
        questions = [DOCS[i]["question"], *["what else ?"] * (rounds - 1)]
        answers = [
            model.generate(messages=doc_to_messages({**DOCS[i], "question": q}), max_new_tokens=5) for q in questions
        ]
        assert result.text == [f"{n}: {answer.text}" for n, answer in enumerate(answers, start=1)]
        assert result.token_counts.input_tokens == sum(answer.usage.prompt_tokens for answer in answers)


def test_simple_rounds(simple, model):
    requests = [
        Instance((DOCS[i]["question"], dict(SHORT), doc_to_visual, doc_to_text, i, "scenes", "test")) for i in (0, 1)
    ]
    check_rounds(simple.generate_until_multi_round(requests), model)


def test_chat_rounds(chat, model):
    requests = [Instance((DOCS[i]["question"], messages_of_round, dict(SHORT), i, "scenes", "test")) for i in (0, 1)]
    check_rounds(chat.generate_until_multi_round(requests), model)


def test_a_chat_task_without_rounds_has_one(chat, model):
    once = lambda doc, **_: doc_to_messages(doc)  # noqa: E731
    [result] = chat.generate_until_multi_round([Instance(("", once, dict(SHORT), 0, "scenes", "test"))])
    assert result.text == [expected(model, 0).text]


def test_the_loss_is_the_mean_over_the_answer_and_its_end(simple, model):
    answers = [" red", " blue circle", " red"]
    requests = [Instance((DOCS[0]["question"], a, doc_to_visual, 0, "scenes", "test")) for a in answers[:2]]
    requests.append(Instance((DOCS[1]["question"], lambda doc: "red", doc_to_visual, 1, "scenes", "test")))
    found = [stand_ins.unwrap(result)[0] for result in simple.loglikelihood(requests)]

    for i, answer, (loss, is_greedy) in zip((0, 0, 1), answers, found, strict=True):
        messages = doc_to_messages(DOCS[i])
        before = model.token_ids(messages=messages)
        whole = model.request(
            "".join([model.form.render(messages, model.style), answer, "</s>"]), doc_to_visual(DOCS[i])
        )
        ids = whole.token_ids[len(before) :]
        rows = model.engine.logits(whole, budget=None)[-len(ids) - 1 : -1]
        log_p = (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))[np.arange(len(ids)), ids]
        assert len(ids) == len(answer.split()) + 1
        assert loss == pytest.approx(-log_p.mean(), abs=1e-4)
        assert is_greedy == bool((rows.argmax(1) == ids).all())


def test_unknown_arguments_are_refused(make):
    with pytest.raises(ConfigError, match="alpha"):
        make("lmms_chat", "VilaChat", budget="hired:6", alpha=0.3)


def test_the_entry_point_names_both_classes_and_imports_nothing(log):
    project = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, function = project["entry-points"]["lmms_eval.models"]["vila_jax"].split(":")
    manifest = getattr(importlib.import_module(module), function)()
    for path, is_simple in ((manifest.simple_class_path, True), (manifest.chat_class_path, False)):
        module, _, name = path.rpartition(".")
        assert getattr(stand_ins.adapter(module.rpartition(".")[2]), name).is_simple == is_simple
    code = "import sys, vila_jax.adapters.entry; print(sorted({'jax', 'numpy', 'lmms_eval'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
