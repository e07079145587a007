"""Every metric against what the reference implementations gave, for every variant that is offered by name."""

import json
import math

import pytest

from eval.metrics import METRICS, Answered, metric, yes_no
from eval.metrics.mmbench import option_lmms_eval, option_vlmevalkit
from eval.metrics.ptb import tokenize
from eval.metrics.vqa import m4c_normalized, normalized
from vila_jax.errors import ConfigError


@pytest.fixture(scope="module")
def cases(golden):
    def read(name):
        return json.loads((golden / "eval" / f"{name}.json").read_text(encoding="utf-8"))["cases"]

    return read


def answered(case, **extras):
    references = case.get("answers") or [case.get("answer", "")]
    return Answered(case["id"], case["prediction"], references, extras)


# file, metric, {our variant: the reference's}
SINGLE = [
    ("vqa_soft_accuracy", "vqa_accuracy", {v: v for v in ("lmms_eval", "vqa_official", "vlmevalkit")}),
    ("textvqa_accuracy", "textvqa_accuracy", {v: v for v in ("lmms_eval", "vlmevalkit")}),
    ("textvqa_accuracy", "textvqa_accuracy", {"lmms_eval": "llava_m4c"}),
    ("gqa_exact_match", "gqa_exact_match", {v: v for v in ("lmms_eval", "llava", "vlmevalkit")}),
    ("anls", "anls", {"lmms_eval": "lmms_eval"}),
    ("chartqa_relaxed", "relaxed_accuracy", {v: v for v in ("lmms_eval", "vlmevalkit")}),
    ("chartqa_relaxed", "relaxed_accuracy", {"lmms_eval": "pix2struct"}),
]


@pytest.mark.parametrize(("file", "name", "variants"), SINGLE)
def test_scores_of_single_answers(cases, file, name, variants):
    for ours, theirs in variants.items():
        wrong = [
            case
            for case in cases(file)
            if not math.isclose(metric(name).score(answered(case), ours), case["expected"][theirs], abs_tol=1e-6)
        ]
        assert not wrong


def test_normalised_answers(cases):
    for case in cases("vqa_soft_accuracy"):
        assert normalized(case["prediction"]) == case["normalized_prediction"]
    for case in cases("textvqa_accuracy"):
        assert m4c_normalized(case["prediction"]) == case["normalized_prediction"]


@pytest.mark.parametrize("variant", ["llava", "lmms_eval"])
def test_scienceqa(cases, variant):
    for case in cases("scienceqa_option_parsing"):
        sample = Answered(case["id"], case["prediction"], ["ABCDE"[case["answer_index"]]], {"choices": case["choices"]})
        assert metric("scienceqa").score(sample, variant) == case["expected"][variant], case


@pytest.mark.parametrize("variant", ["lmms_eval", "vlmevalkit"])
def test_ocrbench(cases, variant):
    for case in cases("ocrbench"):
        sample = answered(case, dataset="HME100k" if case["is_hme"] else "IIIT5K")
        assert metric("ocrbench").score(sample, variant) == case["expected"][variant], case


@pytest.mark.parametrize("reader", ["pope_llava", "pope_lmms_eval", "mme_lmms_eval", "vlmevalkit"])
def test_yes_or_no(cases, reader):
    for case in cases("yesno_parsing"):
        assert getattr(yes_no, reader)(case["prediction"]) == case["expected"][reader], case


@pytest.mark.parametrize("variant", ["llava", "lmms_eval"])
def test_pope(cases, variant):
    for case in cases("pope_sets"):
        pairs = zip(case["predictions"], case["labels"], strict=True)
        found = metric("pope").aggregate([Answered("", said, [label]) for said, label in pairs], variant)
        expected = case["expected"][variant]
        if "error" in expected:  # nothing is right, and the reference divides by precision and recall
            assert found["f1"] == found["accuracy"] == 0
        else:
            assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
            assert found["f1_of_splits"] == found["f1"]  # one set


def test_pope_is_quoted_as_the_mean_over_its_sets():
    said = [
        ("random", "yes", "yes"),
        ("random", "no", "no"),
        ("adversarial", "yes", "no"),
        ("adversarial", "yes", "yes"),
    ]
    found = metric("pope").aggregate([Answered("", text, [label], {"category": c}) for c, text, label in said])
    assert found["f1/random"] == 1 and found["f1/adversarial"] == pytest.approx(2 / 3)
    assert found["f1_of_splits"] == pytest.approx(5 / 6) and found["f1"] == pytest.approx(4 / 5)


@pytest.mark.parametrize("variant", ["lmms_eval", "vlmevalkit"])
def test_mme(cases, variant):
    names = {"mme_perception_score": "perception", "mme_cognition_score": "cognition", "reasoning": "cognition"}
    for case in cases("mme_sets"):
        rows = [
            Answered("", row["prediction"], [row["answer"]], {key: row[key] for key in ("category", "question_id")})
            for row in case["rows"]
        ]
        found = metric("mme").aggregate(rows, variant)
        found |= {name.removeprefix("category/"): value for name, value in found.items()}
        expected = case["expected"].get(variant, {})
        assert {name: found[names.get(name, name)] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("parser", "reference"),
    [
        (option_vlmevalkit, "vlmevalkit"),
        (option_lmms_eval, "lmms_eval_prefetch"),
    ],
)
def test_options(cases, parser, reference):
    for case in cases("mmbench_option_parsing"):
        assert parser(case["prediction"], case["choices"]) == case["expected"][reference], case


def test_circular_evaluation(cases):
    for case in cases("mmbench_circular"):
        rows = [
            Answered(
                "",
                row["prediction"],
                [row["answer"]],
                {
                    "index": row["index"],
                    "choices": {letter: row[letter] for letter in "ABCD" if letter in row},
                },
            )
            for row in case["rows"]
        ]
        found = metric("mmbench").aggregate(rows)
        assert found["circular"] == case["expected"]["vlmevalkit_exact_matching"], case
        assert found["circular"] == case["expected"]["lmms_eval_static"], case  # the references agree on all of these
        assert found["first_pass"] == case["expected"]["vanilla_first_pass"], case


def test_mmvet(cases):
    for case in cases("mmvet_sets"):
        rows = [
            Answered("", "said", (), {"capability": row["capability"], "judged": row["score"]}) for row in case["rows"]
        ]
        found = {name: 100 * value for name, value in metric("mmvet").aggregate(rows).items()}
        expected = case["expected"]["lmms_eval"]
        assert found["overall"] == pytest.approx(expected["overall"])
        for name, value in expected["capabilities"].items():
            assert found.get(f"capability/{name}", 0) == pytest.approx(value, abs=0.006)
        sets = {frozenset(n.split("/")[1].split("+")): v for n, v in found.items() if n.startswith("integration/")}
        for name, value in expected["integrations"].items():
            assert sets.get(frozenset(name.split("_")), 0) == pytest.approx(value, abs=0.006)


def test_an_answer_that_was_not_judged_is_no_zero():
    rows = [Answered("", "said", (), {"capability": "rec", "judged": judged}) for judged in (1.0, None)]
    found = metric("mmvet").aggregate(rows)
    assert math.isnan(found["overall"]) and found["judged"] == 0.5 and found["capability/rec"] == 1.0


@pytest.mark.parametrize("tokens", ["given", "own"])
def test_captions(cases, tokens, monkeypatch):
    """On the words that the reference found, and on those that we find."""
    if tokens == "given":
        monkeypatch.setattr("eval.metrics.captions.tokenize", str)
    prefix = "tokenized_" if tokens == "given" else ""
    for case in cases("captions"):
        images = case["images"]
        rows = [Answered("", image[f"{prefix}prediction"], image[f"{prefix}references"]) for image in images]
        captions = metric("captions")
        marks = captions.marks(rows, captions.default)
        assert captions.combine(marks) == pytest.approx(case["expected"], abs=1e-6)
        for mark, image in zip(marks, images, strict=True):
            alone = captions.combine([mark])
            assert alone == pytest.approx(image["expected"], abs=1e-6)


@pytest.mark.parametrize("file", ["ptb_tokenizer", "ptb_tokenizer_more"])
def test_tokenizer(cases, file):
    assert {case["text"]: tokenize(case["text"]) for case in cases(file)} == {
        case["text"]: case["expected"] for case in cases(file)
    }


def test_retrieval(cases):
    for case in cases("retrieval_recall"):
        owners = case["text_to_image"]
        rows = [
            Answered("", "", (), {"scores": row, "captions": [c for c, owner in enumerate(owners) if owner == photo]})
            for photo, row in enumerate(case["scores_image_by_text"])
        ]
        found = metric("retrieval_recall").aggregate(rows)
        for direction, name in (("txt", "image_to_text"), ("img", "text_to_image")):
            for k in (1, 5, 10):
                expected = case["expected"]["blip"][f"{direction}_r{k}"]
                assert 100 * found[f"{name}_r{k}"] == pytest.approx(expected, abs=1e-6)


def test_equal_scores_count_against_retrieval():
    rows = [Answered("", "", (), {"scores": [1.0] * 22, "captions": [2 * i, 2 * i + 1]}) for i in range(11)]
    assert set(metric("retrieval_recall").aggregate(rows).values()) == {0.0}


FAILED = {
    "vqa_accuracy": Answered("", None, ["yes"] * 10),
    "textvqa_accuracy": Answered("", None, ["yes"] * 10),
    "anls": Answered("", None, [""]),
    "pope": Answered("", None, ["yes"]),
    "mme": Answered("", None, ["Yes"], {"category": "color", "question_id": "1"}),
    "mmbench": Answered("", None, ["A"], {"index": 1, "choices": {"A": "x"}}),
    "mmvet": Answered("", None, (), {"capability": ["rec"], "judged": None}),
    "captions": Answered("", None, ["a dog"]),
    "retrieval_recall": Answered("", None, (), {"captions": [0]}),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_failed_sample_is_wrong_and_counted(name):
    sample = FAILED.get(name, Answered("", None, ["A", ""], {"choices": ["x"]}))
    own = metric(name)
    assert own.score(sample) == 0
    assert own.aggregate([sample])[own.headline] == 0


@pytest.mark.parametrize("name", METRICS)
def test_of_no_samples_nothing_is_known(name):
    own = metric(name)
    assert math.isnan(own.aggregate([])[own.headline])


@pytest.mark.parametrize("name", ["captions", "mme", "mmbench", "pope", "retrieval_recall"])
def test_marks_drawn_again_make_a_score(name):
    """What the bootstrap relies on: drawn twice, all marks make what they make once."""
    rows = [
        Answered(
            "",
            said,
            ["no" if i == 1 else "yes", "a dog"],
            {
                "category": "color",
                "question_id": str(i // 2),
                "index": i // 2 + 1_000_000 * (i % 2),
                "choices": {"yes": "a dog"},
                "scores": [float(i == c) for c in range(6)],
                "captions": [i],
            },
        )
        for i, said in enumerate(["yes", "no", "yes", "yes", "a dog", "yes"])
    ]
    own = metric(name)
    marks = own.marks(rows, own.default)
    assert 0 < own.aggregate(rows)[own.headline] == own.combine(marks)[own.headline]
    assert own.combine(marks + marks)[own.headline] == pytest.approx(own.combine(marks)[own.headline])


def test_groups_have_their_own_accuracy():
    rows = [
        Answered("", said, ["5"], {"type": kind})
        for said, kind in (("5", "human"), ("7", "human"), ("5.1", "augmented"))
    ]
    found = metric("relaxed_accuracy").aggregate(rows)
    assert found == pytest.approx({"accuracy": 2 / 3, "type/human": 0.5, "type/augmented": 1.0})


def test_unknown_names():
    with pytest.raises(ConfigError, match="Did you mean relaxed_accuracy"):
        metric("relaxed_acuracy")
    with pytest.raises(ConfigError, match=r"no variant 'llama'.*One of: llava, lmms_eval"):
        metric("pope").aggregate([], "llama")


def test_the_defaults_are_those_of_the_references(golden):
    primaries = {
        "vqa_accuracy": "vqa_soft_accuracy",
        "textvqa_accuracy": "textvqa_accuracy",
        "gqa_exact_match": "gqa_exact_match",
        "anls": "anls",
        "relaxed_accuracy": "chartqa_relaxed",
        "pope": "pope_sets",
        "mme": "mme_sets",
        "ocrbench": "ocrbench",
        "mmbench": "mmbench_option_parsing",
        "scienceqa": "scienceqa_option_parsing",
        "mmvet": "mmvet_sets",
        "captions": "captions",
        "retrieval_recall": "retrieval_recall",
    }
    for name, file in primaries.items():
        primary = json.loads((golden / "eval" / f"{file}.json").read_text(encoding="utf-8"))["primary"]
        assert METRICS[name].default == primary
