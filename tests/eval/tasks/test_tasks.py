"""Every reader against a small folder in the published form, and against the Hub's rows."""

import json
from pathlib import Path

import pytest
from PIL import Image

from eval.metrics import METRICS, Answered
from eval.tasks import STYLES, TASKS, Sample, Unreadable, messages, task
from tests.eval.tasks import published
from tests.eval.tasks.published import TEN, on_hub
from vila_jax.errors import ConfigError, VilaError
from vila_jax.vision.open import open_image

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def read(name, folder, **options):
    """Samples of a task, each of whose pictures can be opened, and what could not be read."""
    found = list(task(name).samples(folder, **options))
    samples = [sample for sample in found if isinstance(sample, Sample)]
    assert all(open_image(picture).size == (48, 32) for sample in samples for picture in sample.pictures)
    assert len({sample.id for sample in samples}) == len(samples)
    return samples, [sample for sample in found if isinstance(sample, Unreadable)]


@pytest.mark.parametrize(("name", "prefix"), [("vqav2", "v2_"), ("okvqa", "")])
def test_vqa(tmp_path, name, prefix):
    published.vqa(tmp_path, prefix)
    (first, second), lost = read(name, tmp_path)
    assert (first.id, first.cluster, second.id, lost) == ("420", "42", "730", [])
    assert first.prompt == f"What is in photo 42?{SHORT}"
    assert first.references == tuple(TEN) and first.answer == "a cat"


def test_vqa_test_splits_have_no_answers(tmp_path):
    published.vqa(tmp_path, year="test-dev2015", photos=(1,))
    published.store(tmp_path / "test2015" / "COCO_test2015_000000000001.jpg")
    [sample], _ = read("vqav2", tmp_path, split="testdev")
    assert sample.references == () and sample.extras["question_id"] == 10


def test_gqa(tmp_path):
    published.gqa(tmp_path)
    [sample], _ = read("gqa", tmp_path)
    assert (sample.id, sample.cluster, sample.references) == ("201", "n7", ("no",))
    assert sample.prompt == f"Is the cat left of the cup?{SHORT}"


def test_textvqa_with_and_without_words(tmp_path):
    published.textvqa(tmp_path)
    [plain], _ = read("textvqa", tmp_path)
    [helped], _ = read("textvqa_ocr", tmp_path)
    assert plain.prompt == f"what does it say?{SHORT}" and plain.cluster == "003a"
    assert helped.prompt == f"what does it say?\nReference OCR token: STOP, 4{SHORT}"


def test_mmbench(tmp_path):
    published.mmbench(tmp_path)
    (first, turned), lost = read("mmbench", tmp_path)
    assert first.prompt == f"Which animal?\nA. cat\nB. dog{LETTER}"
    assert turned.prompt == f"Look.\nWhich animal?\nA. dog\nB. cat{LETTER}"
    assert (first.id, turned.id) == ("7", "1000007") and first.cluster == turned.cluster
    assert first.pictures == turned.pictures and turned.extras["choices"] == {"A": "dog", "B": "cat"}
    assert [own.id for own in lost] == ["mmbench_dev_20230712.tsv line 4"]


def test_mmvet(tmp_path):
    published.mmvet(tmp_path)
    [sample], _ = read("mmvet", tmp_path)
    assert sample.prompt == "What is x?" and sample.references == ("-1<AND>-5",)
    assert sample.extras == {"capability": ("ocr", "math"), "judged": None}


def test_scienceqa_has_only_questions_with_a_picture(tmp_path):
    published.scienceqa(tmp_path)
    [sample], lost = read("scienceqa_img", tmp_path)
    assert sample.id == "4" and not lost and sample.references == ("B",)
    assert sample.prompt == f"Context: A map.\nWhich is north?\nA. up\nB. down{LETTER}"


def test_pope(tmp_path):
    published.pope(tmp_path)
    samples, _ = read("pope", tmp_path)
    assert [sample.id for sample in samples] == ["random/1", "popular/1", "adversarial/1"]
    assert {sample.cluster for sample in samples} == {"COCO_val2014_000000000042.jpg"}
    [sample], _ = read("pope", tmp_path, split="popular")
    assert sample.prompt == f"Is there a cat?{SHORT}" and sample.extras == {"category": "popular"}
    (tmp_path / "coco_pope_popular.json").unlink()
    with pytest.raises(ConfigError, match=r"no coco_pope_popular\.json.*AoiDragon"):
        read("pope", tmp_path)


def test_mme(tmp_path):
    published.mme(tmp_path)
    samples, lost = read("mme", tmp_path)
    assert [sample.cluster for sample in samples] == ["color/color/0001"] * 2 + ["landmark/landmark/x"] * 2
    assert samples[1].prompt == f"Is it blue?{SHORT}" and samples[1].references == ("No",)
    assert len(lost) == 12 and lost[0].id == "existence"  # the other categories: missing, and said to be
    answers = [Answered(own.id, own.references[0], own.references, own.extras) for own in samples]
    assert METRICS["mme"].aggregate(answers)["perception"] == 400


def test_documents(tmp_path):
    published.docvqa(tmp_path / "docvqa")
    [asked], _ = read("docvqa", tmp_path / "docvqa")
    assert (asked.id, asked.cluster, asked.prompt) == ("337", "279", f"Who?{SHORT}")
    [bare], _ = read("docvqa", tmp_path / "docvqa", style="vila")
    assert bare.prompt == "Who?" and task("docvqa").max_new_tokens == {"llava": 32, "vila": 100}
    published.chartqa(tmp_path / "chartqa")
    samples, _ = read("chartqa", tmp_path / "chartqa")
    assert [(own.id, own.extras["type"]) for own in samples] == [("human/0", "human"), ("augmented/0", "augmented")]
    assert samples[1].references == ("1999",) and samples[0].cluster == samples[1].cluster
    published.ocrbench(tmp_path / "ocrbench")
    [line], _ = read("ocrbench", tmp_path / "ocrbench")
    assert line.prompt == "what is written in the image?" and line.cluster == "IIIT5K/1.png"


def test_half_of_chartqa_is_said_to_be_missing(tmp_path):
    published.chartqa(tmp_path)
    (tmp_path / "test" / "test_augmented.json").unlink()
    samples, lost = read("chartqa", tmp_path)
    assert len(samples) == 1 and lost[0].id == "test/test_augmented.json"


def test_captions(tmp_path):
    published.karpathy(tmp_path / "coco", "coco", "val2014", {"filepath": "val2014"})
    published.karpathy(tmp_path / "flickr", "flickr30k", "flickr30k-images", {})
    for name, place in (("coco_captions", "coco"), ("flickr30k_captions", "flickr")):
        [sample], _ = read(name, tmp_path / place)
        assert sample.references == tuple(f"photo 2 {i}" for i in range(5)) and sample.id == "2.jpg"
        assert sample.prompt == "Provide a one-sentence caption for the provided image."
        assert len(read(name, tmp_path / place, split="train")[0]) == 2


def test_captions_in_the_form_of_coco(tmp_path):
    notes = [{"image_id": 9, "caption": "a cat"}, {"image_id": 9, "caption": "the cat"}]
    images = [{"id": 9, "file_name": "000000000009.jpg"}]
    published.dump(tmp_path / "annotations" / "captions_val2017.json", {"images": images, "annotations": notes})
    published.store(tmp_path / "val2017" / "000000000009.jpg")
    [sample], _ = read("coco_captions", tmp_path, split="val2017")
    assert (sample.id, sample.references) == ("9", ("a cat", "the cat"))


def test_flickr8k(tmp_path):
    published.flickr8k(tmp_path)
    samples, lost = read("flickr8k_captions", tmp_path)
    assert [own.id for own in samples] == ["1_x.jpg", "0_x.jpg"] and [own.id for own in lost] == ["9_x.jpg"]
    samples, _ = read("flickr8k_retrieval", tmp_path)
    assert [own.extras["captions"] for own in samples] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    scores = [[1.0] * 5 + [0.0] * 5, [0.0] * 5 + [1.0] * 5]
    answers = [
        Answered(own.id, "", (), {**own.extras, "scores": row}) for own, row in zip(samples, scores, strict=True)
    ]
    assert METRICS["retrieval_recall"].aggregate(answers)["mean_recall"] == 1


def test_scenes(tmp_path):
    first, second = task("scenes").samples(tmp_path, limit=2)
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert isinstance(first.pictures[0], Image.Image) and first.extras["kind"] and first.cluster != second.cluster
    assert METRICS["exact_match"].score(Answered("", f"{first.answer}.", first.references)) == 1


HUB = {
    "vqav2": (
        "data/validation",
        {
            "question_id": 1,
            "image_id": 9,
            "question": "Q?",
            "answers": [{"answer": text, "answer_id": n} for n, text in enumerate(TEN)],
        },
    ),
    "okvqa": ("data/val2014", {"question_id": "1", "question": "Q?", "answers": TEN}),
    "textvqa": (
        "data/validation",
        {"question_id": 1, "image_id": "a", "question": "Q?", "answers": TEN, "ocr_tokens": []},
    ),
    "textvqa_ocr": ("data/validation", {"question_id": 1, "question": "Q?", "answers": TEN, "ocr_tokens": ["A"]}),
    "mmbench": (
        "en/dev",
        {
            "index": 3,
            "question": "Q?",
            "hint": "nan",
            "A": "x",
            "B": "y",
            "C": "nan",
            "D": "nan",
            "answer": "A",
            "category": "c",
            "L2-category": "d",
        },
    ),
    "mmvet": ("data/test", {"question_id": "v1_0", "question": "Q?", "answer": "a", "capability": "rec,ocr"}),
    "scienceqa_img": ("ScienceQA-IMG/test", {"question": "Q?", "choices": ["x", "y"], "answer": 0, "hint": ""}),
    "pope": (
        "data/test",
        {"question_id": "1", "question": "Q?", "answer": "no", "category": "random", "image_source": "i"},
    ),
    "mme": (
        "data/test",
        {"question_id": "color/1.jpg", "question": "Q? Please answer yes or no.", "answer": "Yes", "category": "color"},
    ),
    "docvqa": ("DocVQA/validation", {"questionId": "1", "question": "Q?", "answers": ["a"], "docId": 2}),
    "chartqa": ("data/test", {"type": "human_test", "question": "Q?", "answer": "1"}),
    "ocrbench": ("data/test", {"dataset": "IIIT5K", "question": "Q?", "question_type": "R", "answer": ["a"]}),
    "flickr30k_captions": ("data/test", {"caption": ["a cat"], "img_id": "1", "filename": "1.jpg"}),
}


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub(tmp_path, name):
    place, row = HUB[name]
    rows = [{**row, "image": on_hub()}, {**row, "image": {"bytes": None, "path": "x"}}]
    published.parquet(tmp_path / f"{place}-00000-of-00001.parquet", rows)
    [sample], [lost] = read(name, tmp_path)
    assert sample.pictures == (on_hub()["bytes"],) and "no picture" in lost.why
    assert sample.prompt.startswith(("Q?", "Provide")) and sample.references
    extras = {**sample.extras, "judged": 1.0}
    answered = Answered(sample.id, sample.answer, sample.references, extras)
    expected = 0.0 if name == "flickr30k_captions" else 1.0  # CIDEr of a corpus of one photo
    assert METRICS[task(name).metric].score(answered, task(name).variant) == pytest.approx(expected)


def test_gqa_of_the_hub_is_joined(tmp_path):
    published.parquet(
        tmp_path / "testdev_balanced_images" / "testdev-0-of-1.parquet", [{"id": "n7", "image": on_hub()}]
    )
    rows = [{"id": str(n), "imageId": image, "question": "Q?", "answer": "a"} for n, image in enumerate(("n7", "n8"))]
    published.parquet(tmp_path / "testdev_balanced_instructions" / "testdev-0-of-1.parquet", rows)
    [sample], [lost] = read("gqa", tmp_path)
    assert sample.id == "0" and sample.cluster == "n7" and lost.id == "1"


def test_pope_of_the_hub_in_three_files(tmp_path):
    for name in ("random", "popular", "adversarial"):
        row = {"question_id": "1", "question": "Q?", "answer": "no", "category": name, "image": on_hub()}
        published.parquet(tmp_path / "Full" / f"{name}-00000-of-00001.parquet", [row])
    assert len(read("pope", tmp_path)[0]) == 3 and len(read("pope", tmp_path, split="random")[0]) == 1


def test_json_lines_with_pictures_beside_them(tmp_path):
    row = {"question_id": 1, "question": "Q?", "answers": TEN, "image": "photos/1.jpg"}
    good, gone = json.dumps(row), json.dumps({**row, "question_id": 2, "image": "photos/2.jpg"})
    out = json.dumps({**row, "question_id": 3, "image": "../1.jpg"})
    (tmp_path / "validation.jsonl").write_text(f"{good}\n{{broken\n\n{gone}\n{out}\n[1]\n{{}}\n")
    published.store(tmp_path / "photos" / "1.jpg")
    [sample], lost = read("vqav2", tmp_path)
    assert sample.id == "1"
    assert [own.id for own in lost] == ["validation.jsonl line 2", "2", "3", "validation.jsonl line 6", "row 5"]
    why = [own.why for own in lost]
    assert "no JSON" in why[0] and "photos/2.jpg" in why[1] and "leads out" in why[2] and "no field 'image'" in why[4]


def test_an_unreadable_line_of_pope(tmp_path):
    published.pope(tmp_path)
    with (tmp_path / "coco_pope_random.json").open("a") as file:
        file.write(
            '{"question_id": 2, "image"\n{"question_id": 3, "image": "gone.jpg", "text": "Q?", "label": "no"}\n{}\n'
        )
    samples, lost = read("pope", tmp_path)
    assert len(samples) == 3
    assert [own.id for own in lost] == ["coco_pope_random.json line 2", "random/3", "random/None"]


def test_a_missing_picture_keeps_its_place(tmp_path):
    published.vqa(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    first, second = task("vqav2").samples(tmp_path)
    assert isinstance(first, Unreadable) and isinstance(second, Sample)
    assert first.id == "420" and "COCO_val2014_000000000042.jpg" in first.why


def test_a_broken_parquet_file(tmp_path):
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    assert [own.id for own in read("vqav2", tmp_path)[1]] == ["validation-00000-of-00001.parquet"]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "scenes"])
def test_a_missing_file_is_named_with_its_place(tmp_path, name):
    with pytest.raises(VilaError, match=r"(json|tsv|txt).*https://"):
        list(task(name).samples(tmp_path))


def test_damaged_files_and_unknown_names(tmp_path):
    (tmp_path / "mm-vet.json").write_text("{")
    with pytest.raises(ConfigError, match=r"mm-vet\.json: this is no JSON"):
        list(task("mmvet").samples(tmp_path))
    with pytest.raises(ConfigError, match=r"Did you mean textvqa_ocr"):
        task("textvqa-ocr")
    with pytest.raises(ConfigError, match=r"no split 'dev'.*One of: val, train"):
        list(task("okvqa").samples(tmp_path, "dev"))
    with pytest.raises(ConfigError, match=r"no style 'gpt'"):
        list(task("okvqa").samples(tmp_path, style="gpt"))


def test_demonstrations_are_drawn_by_seed_from_other_pictures(tmp_path):
    published.vqa(tmp_path, "", "train2014", photos=tuple(range(1, 13)))
    own = task("okvqa")
    four = own.demonstrations(tmp_path, 0, 4)
    assert [sample.id for sample in four] == [sample.id for sample in own.demonstrations(tmp_path, 0, 4)]
    assert len({sample.cluster for sample in four}) == 4
    assert {tuple(s.id for s in own.demonstrations(tmp_path, seed, 4)) for seed in range(5)} != {
        tuple(s.id for s in four)
    }
    assert own.demonstrations(tmp_path, 0, 0) == ()
    with pytest.raises(ConfigError, match="13 demonstrations asked, but 12 pictures of train"):
        own.demonstrations(tmp_path, 0, 13)
    with pytest.raises(ConfigError, match="nothing to draw demonstrations from"):
        task("mmvet").demonstrations(tmp_path, 0, 4)


def test_every_seed_draws_every_picture_equally_often(tmp_path):
    published.vqa(tmp_path, "", "train2014", photos=(1, 2, 3, 4))
    drawn = [sample.cluster for seed in range(200) for sample in task("okvqa").demonstrations(tmp_path, seed, 1)]
    assert all(30 < drawn.count(name) < 70 for name in "1234")


def test_a_conversation_with_demonstrations(tmp_path):
    published.vqa(tmp_path, "")
    first, second = (sample for sample in task("okvqa").samples(tmp_path) if isinstance(sample, Sample))
    turns = messages(second, [first])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == "a cat" and turns[0]["content"][0] == {"type": "image", "image": first.pictures[0]}
    assert turns[2]["content"][1] == {"type": "text", "text": second.prompt}
    assert isinstance(first.pictures[0], Path)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_complete(name):
    own = TASKS[name]
    metric = METRICS[own.metric]
    assert own.name == name and own.variant in metric.variants and set(own.max_new_tokens) == set(STYLES)
    assert own.demonstrated is None or own.demonstrated in own.splits
