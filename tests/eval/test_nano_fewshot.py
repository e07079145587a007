"""`python -m eval fewshot`: the prompts are those of training, and the marks are right."""

import json

import numpy as np
import pytest
from PIL import Image

from eval.__main__ import main
from eval.nano_fewshot import SHOTS, Answer, _prompt, _shown, ask, draw_tasks, losses
from tests.nano import export_narrow
from train.data.documents import document_tokens
from train.scenes.fewshot import COLOR, HELD_OUT, KIND, written
from vila_jax.model import from_pretrained


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return export_narrow(tmp_path_factory.mktemp("fewshot") / "narrow")


@pytest.fixture(scope="module")
def model(narrow):
    return from_pretrained(str(narrow))


def test_half_of_the_tasks_are_in_held_out_forms():
    tasks = draw_tasks(24)
    assert [task.held_out for task in tasks] == [True, False] * 12
    assert {task.form for task in tasks if task.held_out} == set(HELD_OUT)
    assert all({COLOR, KIND} <= set(task.form) for task in tasks)
    assert not {task.form for task in tasks if not task.held_out} & set(HELD_OUT)
    pictures = [scene.image.tobytes() for task in tasks for scene in task.scenes]
    assert len(set(pictures)) == len(pictures) == 24 * 5


@pytest.mark.parametrize("shots", SHOTS)
def test_a_prompt_is_a_document_up_to_its_last_picture(model, shots):
    task = draw_tasks(1)[0]
    shown = _shown(task, shots)
    sentences = [written(task.form, scene.objects[0]) for scene in shown]
    ids, _ = document_tokens(model.form, sentences, range(len(sentences)))
    prompt = model.token_ids(_prompt(task, shots, model.form.tokenizer.image_token), [s.image for s in shown])
    assert ids[: len(prompt)].tolist() == list(prompt) and prompt[-1] == model.form.image_id
    rest = model.form.tokenizer.decode(ids[len(prompt) :].tolist())
    assert Answer(task, shots, rest).right


def test_marks():
    task = draw_tasks(1)[0]
    said = written(task.form, task.asked)
    other = said.replace(task.asked.color, "white" if task.asked.color != "white" else "red")
    marks = {text: (a.right, a.in_form) for text in (said, other, "red") for a in [Answer(task, 2, text)]}
    assert list(marks.values()) == [(True, True), (False, True), (False, False)]
    assert Answer(task, 2, said + " yes").right  # nothing behind the end of the example counts


@pytest.mark.parametrize("shots", [0, 4])
def test_losses_are_those_of_the_whole_document(model, shots):
    tasks = draw_tasks(3)
    found = losses(model, tasks, shots, batch=2)
    assert len(found) == 3
    for task, loss in zip(tasks, found, strict=True):
        pictures = [Image.fromarray(scene.image) for scene in _shown(task, shots)]
        prompt = _prompt(task, shots, model.form.tokenizer.image_token)
        whole = model.token_ids(prompt + written(task.form, task.asked), pictures)
        behind = len(whole) - len(model.token_ids(prompt, pictures))
        logits = model.logits(prompt + written(task.form, task.asked), pictures, budget=None).astype(np.float64)
        scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = [scores[i - 1, whole[i]] for i in range(-behind, 0)]
        assert loss == pytest.approx(-np.mean(picked), rel=1e-4)


def test_everything_is_written_and_adds_up(narrow, model, tmp_path):
    out = tmp_path / "docs" / "tiny"
    assert main(["fewshot", "--model", str(narrow), "--tasks", "6", "--batch", "4", "--out", str(out)]) == 0
    facts = json.loads((out / "fewshot.json").read_text())
    assert [(row["held_out"], row["shots"], row["asked"]) for row in facts["rows"]] == [
        (held_out, shots, 3) for held_out in (True, False) for shots in SHOTS
    ]
    answers = ask(model, draw_tasks(6), 2, batch=4)
    assert sum(answer.right for answer in answers if answer.task.held_out) == facts["rows"][1]["right"]
    page = (tmp_path / "docs" / "tiny.md").read_text()
    assert "| held out | 4 | 3 |" in page and str(tmp_path) not in page
