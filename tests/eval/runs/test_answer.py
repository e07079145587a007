"""Answers of a run: the model's own, whatever they are batched with; failures stay with their samples."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import vila_jax
from eval.runs.answer import Runner
from eval.runs.identity import Generation
from eval.runs.items import Item, Questions
from eval.tasks import SCENES
from tests.infer.checkpoints import EOS, photo, write
from vila_jax.errors import ConfigError
from vila_jax.infer.engine import Engine

QUESTIONS = Questions(SCENES, None, "test", "llava", limit=11)
GENERATION = Generation(4)


def ask(model, items, *, batch=4, budget=None, before=None, generation=GENERATION):
    parsed = None if budget is None else vila_jax.Budget.parse(budget)
    runner = Runner(model, batch, workers=2)
    return [record for own in runner.records(items, parsed, generation, "run", before) for record in own]


@pytest.mark.parametrize("budget", [None, "hired:0.2", "fastv:0.5,layer=1"])
def test_a_batched_answer_is_the_answer_alone(model, budget):
    items = list(QUESTIONS.items())
    found = {record.index: record for record in ask(model, iter(items), budget=budget)}
    assert sorted(found) == list(range(11))
    for item in items:
        alone = model.generate(messages=item.messages, budget=budget, max_new_tokens=4)
        record = found[item.index]
        assert (record.answer, record.finish) == (alone.text, alone.finish_reason)
        assert record.tokens["visual"] == alone.usage.visual_tokens_kept
        assert record.tokens["new"] == len(alone.token_ids) and record.references == item.references
        assert item.question in record.prompt and record.error is None


def test_nothing_is_compiled_after_warm_up(model, count_compilations):
    """Other questions, other pictures, and a last batch that is not full."""
    for budget in (None, "hired:0.2"):
        ask(model, QUESTIONS.items(), budget=budget)
        other = list(dataclasses.replace(QUESTIONS, limit=24).items())[11:]
        with count_compilations() as count:
            assert len(ask(model, iter(other), budget=budget)) == 13
        assert count() == 0


def test_what_is_done_is_not_asked_again_unless_it_failed_or_changed(model):
    items = list(QUESTIONS.items())[:4]
    before = {record.index: record for record in ask(model, items)}
    assert ask(model, items, before=before) == []
    before[1] = dataclasses.replace(before[1], error={"kind": "E", "message": ""})
    turned = items[2].messages[0]["content"][0] | {"image": Image.new("RGB", (96, 96))}
    messages = [{"role": "user", "content": [turned, items[2].messages[0]["content"][1]]}]
    items[2] = dataclasses.replace(items[2], messages=messages)
    assert {record.index for record in ask(model, items, before=before)} == {1, 2}


def failing(index, picture, question="Read the word."):
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return Item(index, str(index), str(index), [{"role": "user", "content": content}], ("a",))


def test_samples_that_cannot_be_asked_fail_alone(model, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    items = [*list(QUESTIONS.items())[:3], failing(3, tmp_path / "missing.png"), failing(4, tmp_path / "damaged.png")]
    items += [
        failing(5, Image.new("RGB", (96, 96)), "word " * 2000),
        Item(6, "6", "6", [], broken="there is no picture"),
    ]
    found = {record.index: record for record in ask(model, items)}
    assert [found[i].error for i in range(3)] == [None] * 3 and all(found[i].answer for i in range(3))
    kinds = {i: found[i].error["kind"] for i in range(3, 7)}
    assert kinds == {3: "FileNotFoundError", 4: "ImageError", 5: "ContextLengthError", 6: "Unreadable"}
    assert found[6].error["message"] == "there is no picture" and "missing.png" in found[3].error["message"]


def test_a_sample_that_fails_on_the_device_does_not_take_its_batch_along(model, monkeypatch):
    items, poison = list(QUESTIONS.items())[:4], None
    poison = model.request(messages=items[2].messages).token_ids
    generate = Engine.generate

    def fails(self, requests, *args, **options):
        if any(list(request.token_ids) == list(poison) for request in requests):
            raise RuntimeError("INTERNAL: the device stumbled")
        return generate(self, requests, *args, **options)

    monkeypatch.setattr(Engine, "generate", fails)
    found = {record.index: record for record in ask(model, items)}
    assert found[2].error == {"kind": "RuntimeError", "message": "INTERNAL: the device stumbled"}
    assert all(found[i].error is None and found[i].answer is not None for i in (0, 1, 3))


def test_running_out_of_memory_is_no_samples_fault(model, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(Engine, "generate", fails)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        ask(model, QUESTIONS.items())


def test_demonstrations_come_before_the_question_each_with_its_picture(model):
    shown = dataclasses.replace(QUESTIONS, limit=5, shots=2, seed=3)
    demonstrations = shown.demonstrations()
    assert demonstrations == shown.demonstrations() != dataclasses.replace(shown, seed=4).demonstrations()
    [first, *_] = items = list(shown.items(demonstrations))
    roles = [message["role"] for message in first.messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert [message["content"] for message in first.messages[1::2]] == [own.answer for own in demonstrations]
    assert [[part["type"] for part in m["content"]] for m in first.messages[::2]] == [["image", "text"]] * 3
    described, _ = shown.describe(demonstrations)
    assert described["demonstrations"] == {"seed": 3, "ids": [own.id for own in demonstrations]}
    [record] = ask(model, items[:1], batch=1, budget="hired:0.2")
    alone = model.generate(messages=items[0].messages, budget="hired:0.2", max_new_tokens=4)
    assert record.answer == alone.text and record.prompt.count("<image>") == 3


def test_no_sample_or_two_of_one_id_are_refused(tmp_path):
    def rows(*ids):
        return lambda folder, split: iter([{"id": name, "question": "q", "answer": "a"} for name in ids])

    def sample(row, style):
        return next(iter(SCENES.samples(tmp_path, limit=1))).__class__(row["id"], "c", (), row["question"])

    task = dataclasses.replace(SCENES, rows=rows("1", "2", "1"), to_sample=sample)
    with pytest.raises(ConfigError, match="'1' among them"):
        Questions(task, tmp_path, "test", "llava").describe(())
    with pytest.raises(ConfigError, match="no sample"):
        Questions(dataclasses.replace(task, rows=rows()), tmp_path, "test", "llava").describe(())


def test_answers_are_those_of_transformers(tmp_path):
    """A tiny LLaVA in the Hugging Face form: the runner's answers are what transformers generates."""
    theirs = write(tmp_path / "llava", text_args={"max_position_embeddings": 400})
    ours = vila_jax.from_pretrained(theirs.folder, dtype="float32", style="plain")
    pictures = [photo(40 + 7 * i, 60, seed=i) for i in range(5)]
    texts = [" ".join(f" w{5 + i + n}" for n in range(3 + i)) for i in range(5)]
    items = [failing(i, picture, text) for i, (picture, text) in enumerate(zip(pictures, texts, strict=True))]
    found = {record.index: record for record in ask(ours, items, generation=Generation(6))}
    for i, item in enumerate(items):
        assert found[i].error is None, found[i].error
        inputs = theirs.processor(text=found[i].prompt, images=[pictures[i]], return_tensors="pt")
        with torch.no_grad():
            out = theirs.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        assert found[i].answer.split() == theirs.processor.tokenizer.decode(ids).split()
        assert item.question.split()[0] in found[i].prompt
    assert len({record.answer for record in found.values()}) > 1 and np.isfinite(found[0].seconds["decode"])
