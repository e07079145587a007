"""The command line of lm-eval with our model, on tasks of local files, against scores from our own answers."""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import vila_jax
from vila_jax import assets
from vila_jax.infer.layout import Request

TASKS = pathlib.Path(__file__).parent / "lm_tasks"
QUESTIONS = [
    "what color is the circle ?",
    "how many shapes are there ?",
    "which word is on the sign ?",
    "what is this ?",
]
CHOICES = ["red", "2", "dog", "a circle"]


@pytest.fixture(scope="module")
def model():
    return vila_jax.from_pretrained(str(assets.nano()))


@pytest.fixture(scope="module")
def docs(model):
    """Half of them are answered by what the model says, half by what it does not say."""
    prompts = [f"USER: {question} ASSISTANT:" for question in QUESTIONS]
    said = [model.generate(prompt, max_new_tokens=6, stop=["."]).text.strip() for prompt in prompts]
    rows = zip(prompts, said, strict=True)
    return [
        {"prompt": prompt, "choices": CHOICES, "label": i, "answer": text if i % 2 else f"not {text}"}
        for i, (prompt, text) in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def results(docs, tmp_path_factory):
    """What the command line writes."""
    folder = tmp_path_factory.mktemp("lm_eval")
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "vila_jax.adapters.lm_eval", "run", "--model", "vila_jax"]
    command += ["--model_args", "pretrained=nano", "--tasks", "words_choice,words_answer,words_text"]
    command += ["--include_path", str(TASKS), "--batch_size", "3", "--output_path", str(folder / "out")]
    environment = os.environ | offline | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    [written] = (folder / "out").rglob("results_*.json")
    return json.loads(written.read_text())["results"]


def log_probs(model, context: str, text: str) -> np.ndarray:
    before = model.tokenizer.encode(context)
    targets = model.tokenizer.encode(text, add_special_tokens=False)
    rows = model.engine.logits(Request([*before, *targets[:-1]]), budget=None)[-len(targets) :]
    return (rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))[np.arange(len(targets)), targets]


def test_multiple_choice(results, model, docs):
    likely = [[log_probs(model, doc["prompt"], f" {choice}").sum() for choice in CHOICES] for doc in docs]
    right = [int(np.argmax(row)) == doc["label"] for row, doc in zip(likely, docs, strict=True)]
    assert results["words_choice"]["acc,none"] == pytest.approx(np.mean(right))


def test_answers(results):
    assert results["words_answer"]["exact_match,none"] == pytest.approx(0.5)


def test_perplexity(results, model, docs):
    total = sum(log_probs(model, "", doc["prompt"]).sum() for doc in docs)
    words = sum(len(doc["prompt"].split()) for doc in docs)
    assert results["words_text"]["word_perplexity,none"] == pytest.approx(math.exp(-total / words), rel=1e-3)
