"""The command line of lmms-eval with our model, on tasks of local files, against scores from our own answers.

lmms-eval brings a hundred packages and its own wishes of their versions, so that it has an environment of its own; see
`docs/harnesses.md`. These tests run where it is installed.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vila_jax
from vila_jax import assets
from vila_jax.exam.items import draw_exam

if importlib.util.find_spec("lmms_eval") is None:
    pytest.skip("docs/harnesses.md says how to make the environment of lmms-eval", allow_module_level=True)

TASKS = pathlib.Path(__file__).parent / "lmms_tasks"
BUDGET = "hired:0.4"
SECOND = "how many shapes are there ?"


@pytest.fixture(scope="module")
def model():
    return vila_jax.from_pretrained(str(assets.nano()), budget=BUDGET)


@pytest.fixture(scope="module")
def pictures():
    items = draw_exam(9)
    return [Image.fromarray(item.scene.image) for item in items], [item.question for item in items]


def ask(picture, question: str) -> list[dict]:
    shown = [] if picture is None else [{"type": "image", "image": picture}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]


def say(model, picture, question: str):
    return model.generate(messages=ask(picture, question), max_new_tokens=8, stop=["."])


@pytest.fixture(scope="module")
def docs(model, pictures):
    """Nine questions about scenes with their true answers, and one that shows nothing."""
    found = []
    for i, (picture, question) in enumerate(zip(*pictures, strict=True)):
        counted = say(model, picture, SECOND).text.strip()
        others = [other.answer for other in pictures[1] if other.answer != question.answer][:2]
        choices = [*others[: i % 3], question.answer, *others[i % 3 :]]
        found.append(
            {"picture": f"{i}.png", "question": question.text, "answer": question.answer}
            | {"choices": choices, "label": i % 3, "second_question": SECOND, "second_answer": counted}
        )
    text = {"picture": None, "question": "what is red ?", "second_question": SECOND, "second_answer": "none"}
    return [*found, text | {"answer": "nothing", "choices": ["red", "blue"], "label": 1}]


@pytest.fixture(scope="module")
def run(docs, pictures, tmp_path_factory):
    """Runs the command line in a folder of the documents, and returns its results, and the log of a task's samples."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for i, picture in enumerate(pictures[0]):
        picture.save(folder / f"{i}.png")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "XLA_FLAGS": ""}

    def run(tasks: str, *more: str):
        out = folder / f"out{len(list(folder.glob('out*')))}"
        command = [sys.executable, "-m", "lmms_eval", "--model", "vila_jax", *more, "--tasks", tasks]
        command += ["--model_args", f"pretrained=nano,budget={BUDGET}", "--include_path", str(TASKS)]
        command += ["--batch_size", "4", "--log_samples", "--output_path", str(out)]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False
        )
        written = list(out.rglob("*_results.json"))
        assert written, done.stdout[-2000:] + done.stderr[-4000:]
        samples = {path.stem.split("_samples_")[1]: path for path in out.rglob("*_samples_*.jsonl")}
        lines = {task: [json.loads(line) for line in path.read_text().splitlines()] for task, path in samples.items()}
        return json.loads(written[0].read_text())["results"], lines

    return run


def expected_answers(model, docs, pictures):
    return [say(model, picture, doc["question"]) for picture, doc in zip([*pictures[0], None], docs, strict=True)]


def check_answers(results, samples, model, docs, pictures) -> None:
    answers = expected_answers(model, docs, pictures)
    texts = [answer.text.strip() for answer in answers]
    right = [text == doc["answer"] for text, doc in zip(texts, docs, strict=True)]
    again = [say(model, p, SECOND).text.strip() for p in (*pictures[0], None)]
    both = [one and two == doc["second_answer"] for one, two, doc in zip(right, again, docs, strict=True)]
    assert results["scenes_answer"]["right,none"] == pytest.approx(np.mean(right))
    assert results["scenes_rounds"]["all_right,none"] == pytest.approx(np.mean(both))
    assert 0 < np.mean(right) < 1
    logged = sorted(samples["scenes_answer"], key=lambda line: line["doc_id"])
    assert [line["filtered_resps"].strip() for line in logged] == texts
    counts = [line["token_counts"][0] for line in logged]
    assert [own["input_tokens"] for own in counts] == [answer.usage.prompt_tokens for answer in answers]
    assert [own["output_tokens"] for own in counts] == [answer.usage.completion_tokens for answer in answers]


@pytest.mark.slow
def test_simple_class(run, model, docs, pictures):
    results, samples = run("scenes_answer,scenes_rounds,scenes_choice", "--force_simple")
    check_answers(results, samples, model, docs, pictures)
    right = []
    logged = sorted(samples["scenes_choice"], key=lambda line: line["doc_id"])
    for picture, doc, line in zip([*pictures[0], None], docs, logged, strict=True):
        found = model.log_likelihoods(ask(picture, doc["question"]), doc["choices"])
        losses = [-np.mean(one.log_probs) for one in found]
        assert [float(loss) for loss, _ in line["filtered_resps"]] == pytest.approx(losses, abs=1e-4)
        right.append(int(np.argmin(losses)) == doc["label"])
    assert results["scenes_choice"]["acc,none"] == pytest.approx(np.mean(right))


@pytest.mark.slow
def test_chat_class(run, model, docs, pictures):
    results, samples = run("scenes_answer,scenes_rounds")
    check_answers(results, samples, model, docs, pictures)
