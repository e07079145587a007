"""All tasks end to end: answers and scores are those of transformers, asked with the prompts of LLaVA."""

import io
import json

import pytest
import torch
from PIL import Image

from eval.__main__ import main
from eval.metrics import METRICS, Answered
from eval.runs.records import read
from eval.runs.score import load
from eval.tasks import TASKS, Sample, prompts
from tests.eval.tasks import published
from tests.infer import checkpoints

NEW_TOKENS = 1
SPOKEN = ("J.Doe", "cat", "no", "B", "yes", "14", "photo")
"""What the model can say, so that some of its answers are right."""
PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\n{question} ASSISTANT:"
)
SPECIAL = {name: number for name, number in checkpoints.VOCABULARY.items() if number < 4}
ASKED = [name for name, own in TASKS.items() if own.metric != "retrieval_recall"]
NOT_ASKED = {"mmbench": 1, "mme": 12, "flickr8k_captions": 1}
"""Rows that the published folders have damaged or not at all."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tiny LLaVA that reads the words of the prompts, looks sharply, and says what answers are made of."""
    read = " ".join((PROMPT, prompts.SHORT, prompts.LETTER, prompts.CAPTION, "Is it red? Which animal? Who? How many?"))
    words = dict.fromkeys((*SPOKEN, *read.replace("<image>", "").split()))
    words = [*words, *(f"w{i}" for i in range(92 - len(words)))]
    vocabulary = {**SPECIAL, **{word: number for number, word in enumerate(words, start=4)}}
    folder = tmp_path_factory.mktemp("transformers") / "llava"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "VOCABULARY", vocabulary)
        made = checkpoints.write(folder, text_args={"max_position_embeddings": 400})
    with torch.no_grad():
        for name, weight in made.model.named_parameters():
            weight.mul_(10.0 if "q_proj" in name else 2.0 if "v_proj" in name else 1.0)
        said = torch.tensor([*map(vocabulary.get, SPOKEN), checkpoints.EOS])
        made.model.lm_head.weight.mul_(torch.zeros(97, 1).index_fill(0, said, 1.0))
    made.model.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folders of all tasks, as published."""
    root = tmp_path_factory.mktemp("published")
    for name in ASKED:
        (root / name).mkdir()
    published.vqa(root / "vqav2")
    published.vqa(root / "okvqa", "")
    for name in ("textvqa", "textvqa_ocr"):
        published.textvqa(root / name)
    published.karpathy(root / "coco_captions", "coco", "val2014", {"filepath": "val2014"})
    published.karpathy(root / "flickr30k_captions", "flickr30k", "flickr30k-images", {})
    published.flickr8k(root / "flickr8k_captions")
    published.scienceqa(root / "scienceqa_img")
    for name in ("gqa", "mmbench", "mmvet", "pope", "mme", "docvqa", "chartqa", "ocrbench"):
        getattr(published, name)(root / name)
    return root


@pytest.fixture(scope="module")
def runs(theirs, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    words = ["run", "--model", theirs.folder, "--tasks", ",".join(ASKED), "--data", data, "--out", out, "--limit", 20]
    words += ["--style", "vicuna_v1", "--dtype", "float32", "--max-new-tokens", NEW_TOKENS, "--batch", 4, "--draw", 0]
    assert main([str(word) for word in words]) == 12  # not 0, for the rows that cannot be read
    return out


def generated(theirs, sample):
    """What transformers answers."""
    [shown] = sample.pictures
    picture = shown
    if not isinstance(shown, Image.Image):
        picture = Image.open(io.BytesIO(shown) if isinstance(shown, bytes) else shown)
    text = PROMPT.format(question=sample.prompt)
    inputs = theirs.processor(text=text, images=[picture.convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        out = theirs.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return theirs.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def expected(theirs, data):
    """For every task its samples with the answers of transformers."""
    found = {}
    for name in ASKED:
        samples = [own for own in TASKS[name].samples(data / name, limit=20) if isinstance(own, Sample)]
        found[name] = {own.id: (own, generated(theirs, own)) for own in samples}
    return found


@pytest.mark.parametrize("name", ASKED)
def test_answers_and_scores_are_those_of_transformers(runs, expected, name):
    folder = runs / name / "0-shot" / "all"
    records = {record.id: record for record in read(folder / "samples.jsonl").records.values()}
    assert len(records) == len(expected[name]) + NOT_ASKED.get(name, 0)
    for number, (sample, answer) in expected[name].items():
        assert records[number].error is None, records[number].error
        assert records[number].prompt == PROMPT.format(question=sample.prompt)
        assert records[number].answer.strip() == answer

    own, metric = TASKS[name], METRICS[TASKS[name].metric]
    result = json.loads((folder / "result.json").read_text())
    assert result["n"]["failed"] == NOT_ASKED.get(name, 0)
    if name == "mmvet":  # needs a judge
        assert result["metric"]["value"] is None
        return
    answered = [Answered(s.id, answer, s.references, s.extras) for s, answer in expected[name].values()]
    value = metric.aggregate(answered, own.variant)[metric.headline]
    share = len(answered) / len(records) if load(folder).is_mean else 1.0  # what cannot be asked counts as wrong
    assert result["metric"]["value"] == pytest.approx(share * value)


def test_the_answers_are_worth_scoring(expected, runs):
    """Pictures and questions change them, and some are right."""
    values = [json.loads((runs / n / "0-shot" / "all" / "result.json").read_text())["metric"]["value"] for n in ASKED]
    assert len({answer for found in expected.values() for _, answer in found.values()}) >= 3
    assert sum(bool(value) for value in values) >= 5
