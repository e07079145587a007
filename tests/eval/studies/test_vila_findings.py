"""VILA's findings in miniature: arms differ in what they are to differ in, marks are right, and the study goes on."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from eval.__main__ import main
from eval.studies import findings_report as report
from eval.studies import vila_findings
from eval.studies.findings_arms import ARMS, FULL, QUICK, pretraining, tuning
from eval.studies.findings_measures import _instructions, text_marks
from eval.studies.findings_report import FINDINGS, Claim, Results, draw_chart, tables, verdict
from eval.studies.measure import Estimate
from tests.nano import export_narrow
from train.checks import check
from train.runs import EXPORT, FINISHED
from vila_jax.model import from_pretrained


def stages(settings=FULL, weights="a"):
    """Both stages of every arm."""
    first = {name: pretraining(arm, 0, settings, "nano", weights) for name, arm in ARMS.items()}
    return {name: (stage, tuning(ARMS[name], 0, settings, stage.name)) for name, stage in first.items()}


def differences(one, other):
    """Keys in which two stages differ."""
    pairs = ((field.name, getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    return {name for name, a, b in pairs if a != b}


def test_an_arm_differs_from_its_baseline_in_one_thing():
    found = stages()
    both = found["both"]
    for stage in (stage for own in found.values() for stage in own):
        check(stage)
    assert differences(found["frozen"][0], both[0]) == {"name", "learning_rate"}
    assert "decoder" not in found["frozen"][0].learning_rate and "decoder" in both[0].learning_rate
    for name in ("pairs", "interleaved"):
        assert differences(found[name][0], both[0]) == {"name", "data"}
    for name in ("frozen", "pairs", "interleaved"):
        assert differences(found[name][1], both[1]) == {"name", "start"}
    assert found["text"][0] == both[0]  # one run
    assert differences(found["text"][1], both[1]) == {"name", "data"}
    assert all(own[1].start == own[0].name for own in found.values())


def test_runs_of_other_settings_weights_or_seeds_have_other_names():
    own = {stage.name for pair in stages().values() for stage in pair}
    assert len(own) == 4 + 5
    longer = dataclasses.replace(FULL, tuning=FULL.tuning + 1)
    others = {stage.name for pair in stages(longer).values() for stage in pair}
    assert own & others == {pair[0].name for pair in stages().values()}  # pre-training is the same
    assert not own & {stage.name for pair in stages(weights="b").values() for stage in pair}
    assert pretraining(ARMS["both"], 1, FULL, "nano", "a").name not in own
    assert pretraining(ARMS["both"], 0, FULL, "elsewhere", "a").name in own  # the same weights, moved


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights, but for the end token: it takes the place of a word, and so ends some answers."""
    model = from_pretrained(str(export_narrow(tmp_path_factory.mktemp("findings") / "narrow")), dtype="float32")
    head = model.engine.phases.programs.state["decoder"]["head"]
    word = model.tokenizer.encode("ham")[-1]
    head.set_value(head.get_value().at[model.tokenizer.eos_ids[0]].set(1.01 * head.get_value()[word]))
    return model


def test_text_is_right_exactly_where_greedy_decoding_writes_the_answer(model):
    """The oracle is the engine, whose own words take the place of every other answer."""
    asked, expected = [], []
    for number, record in enumerate(_instructions(8)):
        question, answer = record.messages
        own = model.generate(messages=[question], max_new_tokens=6)
        said = own.text if number % 2 else answer["content"]
        asked.append(dataclasses.replace(record, messages=(question, answer | {"content": said})))
        expected.append(float(own.finish_reason == "stop" and own.text == said))
    assert 0 < sum(expected) < len(expected)
    marks = text_marks(model, asked)
    assert marks["text"] == expected
    for record, loss in list(zip(asked, marks["loss"], strict=True))[:3]:
        assert loss == pytest.approx(_loss(model, record), rel=1e-4)


def _loss(model, record):
    """Of the tokens behind the question, by the logits of the whole conversation."""
    text = model.form.render(record.messages, model.style, add_generation_prompt=False)
    ids = model.form.encode(text, [])
    prompt = model.form.encode(model.form.render(record.messages[:1], model.style, add_generation_prompt=True), [])
    logits = model.logits(text).astype(np.float64)
    assert len(logits) == len(ids)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = np.arange(len(prompt), len(ids))
    return -scores[places - 1, np.asarray(ids)[places]].mean()


def marks(rng, share, items=40, seeds=3):
    return (rng.random((seeds, items)) < share).astype(float)


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(0)
    shares = {"frozen": 0.1, "both": 0.9, "pairs": 0.5, "interleaved": 0.5, "text": 0.2}

    def measured(share, *names):
        return {name: marks(rng, share) for name in names} | {name: rng.random((3, 40)) for name in report.LOSSES}

    after = {name: measured(share, *report.MEASURES) for name, share in shares.items()}
    after["interleaved"]["questions"] = after["pairs"]["questions"]
    after["both"]["examples_loss"] = after["frozen"]["examples_loss"] - 0.25
    return Results({name: measured(0.3, "examples", "text") for name in report.STAGES}, after)


def test_verdicts():
    up, none, down = Estimate(0.2, 0.1, 0.3), Estimate(0.1, -0.1, 0.3), Estimate(-0.2, -0.3, -0.1)
    more, same = Claim("a", "text", 1.0, 1), Claim("a", "text", 0.0, 0)
    assert [verdict(more, own) for own in (up, none, down)] == ["agrees", "cannot be told", "the opposite"]
    assert [verdict(same, own) for own in (up, none, down)] == ["differs", "agrees, as far as can be told", "differs"]
    assert verdict(same, Estimate(0, 0, 0)) == verdict(more, Estimate(0, 0, 0)) == "cannot be told"


def test_tables_say_what_was_measured(results):
    text = tables(results)
    rows = {cells[0]: cells[1:] for line in text.splitlines() for cells in [line.strip("| ").split(" | ")]}
    frozen = results.after["frozen"]["questions"]
    mean, sd = 100 * frozen.mean(), 100 * frozen.mean(axis=1).std(ddof=1)
    assert rows["frozen"][0].startswith(f"{mean:.1f} ± {sd:.1f} (")
    assert rows["zero-shot: trained against frozen"][2] == "differs"
    assert rows["4-shot: trained against frozen"][::2] == ["+11.2", "agrees"]
    assert rows["zero-shot: interleaved against caption pairs"][1:] == ["+0.0 (+0.0 to +0.0)", "cannot be told"]
    assert rows["text: text blended in against pictures alone"][2] == "the opposite"
    assert rows["4-shot loss: trained against frozen"] == ["-0.250 (-0.250 to -0.250)", "better"]
    assert rows["text loss: text blended in against pictures alone"][1] == "cannot be told"
    assert all(f"| {label} |" in text for label in report.STAGES.values())
    facts = results.to_json()
    assert len(facts["claims"]) == sum(len(finding.claims) for finding in FINDINGS)
    assert facts["after"]["frozen"]["questions"]["seeds"] == frozen.mean(axis=1).tolist()
    json.dumps(facts)


def test_a_single_seed_has_no_spread():
    one = {name: np.ones((1, 5)) for name in (*report.MEASURES, *report.LOSSES)}
    cells = report._cells(one)
    assert cells == ("100.0 (100.0 to 100.0)",) * 3 + ("1.000 (1.000 to 1.000)",) * 2


def test_the_chart_shows_every_finding(results, tmp_path):
    draw_chart(results, tmp_path / "chart.png", note="a note")
    picture = Image.open(tmp_path / "chart.png")
    assert picture.width > picture.height > 300
    colors = {color for _, color in picture.convert("RGB").getcolors(2**20)}
    assert {tuple(bytes.fromhex(color[1:])) for color in report._COLORS} <= colors


def command(tmp_path, *more):
    return [
        "study",
        "vila_findings",
        "--quick",
        "--out",
        str(tmp_path / "out"),
        "--runs",
        str(tmp_path / "runs"),
        *more,
    ]


def test_without_the_first_stages_there_is_nothing_to_start_from(tmp_path, capsys):
    assert main([*command(tmp_path)[:2], *command(tmp_path)[3:], "--nano", str(tmp_path)]) == 3
    assert "there is no run nano/align" in capsys.readouterr().err
    (tmp_path / "nano" / "align" / "checkpoints").mkdir(parents=True)
    assert main([*command(tmp_path)[:2], *command(tmp_path)[3:], "--nano", str(tmp_path)]) == 3
    assert "has not finished" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_study_that_was_stopped_goes_on_behind_what_it_has(tmp_path, monkeypatch):
    trained, asked, stop_at = [], [], 4

    def train(stage, place):
        folder = place.runs / stage.name
        if (folder / FINISHED).exists():
            return 0
        if len(trained) == stop_at:
            return 143
        trained.append(stage.name)
        (folder / EXPORT).mkdir(parents=True)
        (folder / FINISHED).touch()
        (folder / EXPORT / "model.safetensors").write_text(stage.name)
        return 0

    def measure(folder, settings, *, questions):
        asked.append(folder.parent.name)
        names = [name for name in (*report.MEASURES, *report.LOSSES) if questions or name != "questions"]
        return {name: [1.0, 0.0] for name in names}

    monkeypatch.setattr(vila_findings, "train", train)
    monkeypatch.setattr(vila_findings, "measure", measure)
    with pytest.raises(SystemExit) as stopped:
        main(command(tmp_path, "--seeds", "2"))
    assert stopped.value.code == 143 and len(trained) == len(asked) == stop_at
    stop_at = 100
    assert main(command(tmp_path, "--seeds", "2")) == 0
    runs = 1 + 2 * (4 + 5)
    assert len(set(trained)) == len(trained) == runs
    assert len(set(asked)) == len(asked) == runs
    facts = json.loads((tmp_path / "out" / "vila_findings.json").read_text())
    assert facts["command"] == "python -m eval study vila_findings --seeds 2 --quick"
    assert {name: len(own["text"]["seeds"]) for name, own in facts["after"].items()} == dict.fromkeys(ARMS, 2)
    assert not list((tmp_path / "out").glob("*.partial*"))


@pytest.mark.slow
def test_every_arm_is_trained_and_measured(tmp_path):
    assert main(command(tmp_path, "--seeds", "1")) == 0
    facts = json.loads((tmp_path / "out" / "vila_findings.json").read_text())
    assert set(facts["after"]) == set(ARMS) and set(facts["before"]) == set(report.STAGES)
    for own in facts["after"].values():
        items = {name: one["items"] for name, one in own.items()}
        of_tasks, of_text = (
            dict.fromkeys(("examples", "examples_loss"), QUICK.tasks),
            dict.fromkeys(("text", "loss"), 8),
        )
        assert items == {"questions": QUICK.questions} | of_tasks | of_text and QUICK.instructions == 8
    losses = {name: own["loss"]["mean"] for name, own in (facts["before"] | facts["after"]).items()}
    assert losses.pop("frozen-both") == losses["aligned"]  # the decoder alone reads text
    assert len(set(losses.values())) == len(losses) and all(3 < loss < 7 for loss in losses.values())
    folders = [path.parent for path in (tmp_path / "runs").glob("*/*/finished.json")]
    assert len(folders) == 1 + 4 + 5
    start, frozen, both = (
        _decoder(tmp_path / "runs", name) for name in ("start-", "frozen-both-0-", "trained-both-0-")
    )
    assert all((frozen[name] == start[name]).all() for name in start)
    assert all((both[name] != start[name]).any() for name in start)
    page = (tmp_path / "out" / "vila_findings.md").read_text()
    assert "**1. The decoder in pre-training**" in page and str(tmp_path) not in page
    Image.open(tmp_path / "out" / "vila_findings.png").load()


def _decoder(runs, name):
    [file] = runs.glob(f"vila_findings/{name}*/export/model.safetensors")
    return {key: value for key, value in load_file(file).items() if "language_model" in key}
