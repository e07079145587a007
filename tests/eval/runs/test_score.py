"""Numbers from the file alone, with everything that is missing said aloud."""

import dataclasses
import json
import math

import numpy as np
import pytest

from eval import statistics
from eval.runs.compare import compare
from eval.runs.records import Record
from eval.runs.rows import rows, warnings
from eval.runs.score import load, score
from vila_jax.errors import ConfigError, DataError


def test_a_failed_sample_counts_as_wrong_and_is_listed(write_run, answered):
    failed = Record(3, "three", "3", references=("d",), error={"kind": "ImageError", "message": "damaged"})
    unreadable = Record(4, "four", "4", error={"kind": "Unreadable", "message": "no picture"})
    done = [answered(0, "a", "a"), answered(1, " B. ", "b"), answered(2, "x", "c")]
    result = score(write_run([*done, failed, unreadable], expected=6))
    assert result["metric"]["value"] == 2 / 5 and result["metric"]["n"] == 5
    assert result["n"] == {"expected": 6, "done": 3, "failed": 2, "missing": 1}
    assert result["failures"][0] == {"id": "three", "kind": "ImageError", "message": "damaged"}
    assert any("1 samples are missing" in warning for warning in result["warnings"])
    assert (result["metric"]["low"], result["metric"]["high"]) == pytest.approx(statistics.wilson(2 / 5, 5))
    assert result["metric"]["method"] == "Wilson" and result["metric"]["variant"] == "vila_jax"


def test_every_sample_has_its_score_and_what_the_metric_read(write_run, answered):
    folder = write_run([answered(1, "Two\n Words", "no"), answered(0, "YES", "yes")])
    score(folder)
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert lines == [
        {"index": 0, "id": "0", "normalised": "yes", "score": 1.0},
        {"index": 1, "id": "1", "normalised": "two words", "score": 0.0},
    ]


def test_the_error_is_clustered_by_picture(write_run, answered):
    found = [answered(i, "a", "a" if i % 3 else "b", cluster=str(i // 4)) for i in range(16)]
    metric = score(write_run(found))["metric"]
    scores = [float(i % 3 != 0) for i in range(16)]
    error = statistics.clustered_standard_error(scores, [str(i // 4) for i in range(16)])
    assert metric["standard_error"] == pytest.approx(error)
    assert metric["high"] - metric["low"] == pytest.approx(2 * 1.959964 * error)
    assert metric["method"] == "normal, clustered by picture"


def test_tokens_and_time(write_run, answered):
    result = score(write_run([answered(0, "a", "a", visual=8), answered(1, "a", "a", visual=12)]))
    assert result["tokens"]["visual"] == {"min": 8, "mean": 10, "max": 12}
    assert result["seconds"]["device"]["median"] == pytest.approx(0.03)
    assert result["seconds"]["samples_per_second"] == pytest.approx(1 / 0.03)
    assert result["seconds"]["new_tokens_per_second"] == pytest.approx(2 / 0.03)


def test_a_headline_that_is_no_mean_is_bootstrapped(write_run, answered):
    def asked(number, answer):
        picture = str(number // 2)
        return answered(number, answer, "yes", cluster=picture, category="color", question_id=picture)

    found = [asked(i, "yes" if i not in (1, 4, 5) else "no") for i in range(12)]
    metric = score(write_run(found, name="mme", metric="mme", variant="lmms_eval"))["metric"]
    assert metric["value"] == pytest.approx(100 * 9 / 12 + 100 * 4 / 6) and metric["scale"] == 1
    assert metric["low"] < metric["value"] < metric["high"] <= 200 and metric["method"].startswith("bootstrap")


def test_a_row_without_a_place_is_a_warning_where_the_metric_is_no_mean(write_run, answered):
    found = [answered(i, "yes", "yes", category="color", question_id=str(i // 2)) for i in range(4)]
    lost = Record(4, "4", "4", error={"kind": "Unreadable", "message": "no picture"})
    result = score(write_run([*found, lost], name="mme", metric="mme", variant="lmms_eval"))
    assert result["metric"]["value"] == 200 and result["n"]["failed"] == 1
    assert any("have no place in perception: it is too high" in warning for warning in result["warnings"])


def test_rows_without_a_right_answer_count_as_wrong_and_are_told_of(write_run, answered):
    """A row that could not be read, and one whose answer is missing, beside captions that are scored."""
    lost = Record(3, "3", "3", error={"kind": "Unreadable", "message": "no picture"})
    found = [answered(0, "a red cat", "a red cat"), answered(1, "the dog", "two dogs"), answered(2, "a bird"), lost]
    options = {"name": "flickr8k_captions", "metric": "captions", "variant": "pycocoevalcap"}
    result = score(write_run(found, **options))
    alone = score(write_run(found[:2], **options, budget="hired:0.2"))
    assert result["metric"]["value"] == pytest.approx(alone["metric"]["value"] / 2) and result["metric"]["n"] == 4
    numbers, other = result["metric"]["numbers"], alone["metric"]["numbers"]
    assert numbers["ROUGE_L"] == pytest.approx(other["ROUGE_L"] / 2) and numbers["Bleu_1"] == other["Bleu_1"] > 0
    assert "1 samples have no right answer in the data" in result["warnings"]


def test_without_published_answers_nothing_is_scored(write_run, answered):
    result = score(
        write_run([answered(0, "a"), answered(1, "b")], name="vqav2", metric="vqa_accuracy", variant="lmms_eval")
    )
    assert result["metric"]["value"] is None and result["metric"]["low"] is None
    assert "right answers are not published: nothing is scored" in result["warnings"]
    json.dumps(result, allow_nan=False)


def test_another_variant_is_scored_from_the_same_file(write_run, answered):
    folder = write_run([answered(0, "Yes", *["yes"] * 10)], name="vqav2", metric="vqa_accuracy", variant="lmms_eval")
    assert score(folder)["metric"]["value"] == 1
    assert (
        score(folder, "vqa_official")["metric"] | {"variant": "vqa_official", "value": 0.0}
        == score(folder, "vqa_official")["metric"]
    )
    with pytest.raises(ConfigError, match="no variant"):
        score(folder, "mine")


def test_a_damaged_line_is_a_warning(write_run, answered):
    folder = write_run([answered(0, "a", "a"), answered(1, "a", "a")])
    path = folder / "samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:40], *lines[3:], ""]))
    result = score(folder)
    assert "samples.jsonl, line 3: unreadable; what it said is lost" in result["warnings"]
    assert result["n"] == {"expected": 2, "done": 1, "failed": 0, "missing": 1}


def test_a_warning_of_many_runs_is_said_once(write_run, answered):
    folders = [write_run([answered(0, "a", "a")], budget=f"hired:0.{k}", expected=1 + (k > 1)) for k in range(1, 7)]
    text = "1 samples are missing: the run is not finished"
    assert warnings(rows(folders[:2])) == [f"hired:0.2: {text}"]
    assert warnings(rows(folders)) == [f"5 of 6 runs: {text}"] and warnings(rows(folders[1:])) == [f"all runs: {text}"]


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"there is no samples\.jsonl"):
        load(tmp_path)


def test_compare_is_the_paired_test(write_run, answered):
    rng = np.random.default_rng(0)
    right, other = rng.random(40) < 0.8, rng.random(40) < 0.5
    runs = []
    for budget, own in ((None, right), ("hired:0.2", other)):
        found = [answered(i, "a" if fine else "b", "a", cluster=str(i // 2)) for i, fine in enumerate(own)]
        runs.append(load(write_run(found, budget=budget)))
    found = compare(runs[1], runs[0])
    clusters = [str(i // 2) for i in range(40)]
    expected = statistics.paired_difference(other.astype(float), right.astype(float), clusters)
    assert (found.difference, found.low, found.high) == (expected.mean, expected.low, expected.high)
    assert found.p_value == expected.p_value and (found.n, found.apart) == (40, 0)
    assert found.value - found.baseline == pytest.approx(found.difference)


def test_only_common_samples_are_compared(write_run, answered):
    full = load(write_run([answered(i, "a", "a") for i in range(4)]))
    part = load(write_run([answered(i, "b", "a") for i in range(3)], budget="hired:0.2", expected=4))
    found = compare(part, full)
    assert (found.difference, found.n, found.apart) == (-1.0, 3, 1)
    other = dataclasses.replace(part, header={**part.header, "task": {**part.header["task"], "ids_sha256": "r"}})
    with pytest.raises(DataError, match="did not ask the same questions"):
        compare(other, full)


def test_a_comparison_of_what_is_no_mean_has_a_bootstrapped_interval(write_run, answered):
    runs = []
    for budget, wrong in ((None, ()), ("hired:0.2", (0, 3, 8))):
        found = [
            answered(
                i, "no" if i in wrong else "yes", "yes", cluster=str(i // 2), category="color", question_id=str(i // 2)
            )
            for i in range(12)
        ]
        runs.append(load(write_run(found, budget=budget, name="mme", metric="mme", variant="lmms_eval")))
    found = compare(runs[1], runs[0])
    assert found.difference == pytest.approx(-100 * 3 / 12 - 100 * 3 / 6) and found.p_value is None
    assert found.low < found.difference < found.high < 0


def test_unjudged_answers_have_no_value(write_run, answered):
    found = [answered(i, "a", "a", capability=["rec"], judged=None) for i in range(3)]
    folder = write_run(found, name="mmvet", metric="mmvet", variant="lmms_eval")
    result = score(folder)
    assert result["metric"]["value"] is None and "3 answers are not judged" in result["warnings"]
    verdicts = [{"key": f"key {i}", "variant": "lmms_eval", "score": i / 2} for i in range(2)]
    (folder / "judged.jsonl").write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts) + "{half")
    result = score(folder)
    assert result["metric"]["value"] is None and "1 answers are not judged" in result["warnings"]
    assert "judged.jsonl, line 3: unreadable; what it said is lost" in result["warnings"]
    verdict = {"key": "key 2", "variant": "lmms_eval", "score": 0.6}
    (folder / "judged.jsonl").write_text("".join(json.dumps(v) + "\n" for v in (*verdicts, verdict)))
    assert math.isclose(score(folder)["metric"]["value"], (0 + 0.5 + 0.6) / 3)
