"""Pages, what a command line changes of them, and what is refused with the name that was probably meant."""

import dataclasses
import json

import pytest
from rich.console import Console

from train.lora import Lora
from train.overrides import keys, override
from train.pages import CONFIGS, from_json, help_of_keys, load, load_all, show, to_json
from train.recipe import Compute, Data, New, Optimizer, Parts, Rows, Safety, Stage
from vila_jax.errors import BudgetError, ConfigError, VilaError

STAGE = Stage("a/b", {"projector": 1e-3}, Rows(32, tiles=4), Data("x+y*2"), start="a/a")
FULL = Stage(
    "every/field",
    {"tower": 1e-5, "projector": 0.1 + 0.2, "decoder": 1 / 3},
    Rows(12, 640, 15, 3, 8),
    Data("x=0.25+y=0.75", "plain", 1, 0.125, 3, 4),
    steps=7,
    new=New(
        {"model_type": "llava", "sizes": [[1, 2], [3, 4]], "text_config": {"width": 64, "eps": 1e-5}}, {"a.json": "{}"}
    ),
    lora=Lora(8, 2.0, ("tower", "decoder")),
    objective="answers+labels",
    time_std=1.5,
    budgets=("full", "hired:0.2"),
    average=0.999,
    export="float32",
    optimizer=Optimizer("muon", 0.8, 0.98, 0.01, 1.0, 0.06, "linear", 0.01),
    compute=Compute("float32", "full", False, 64),
    safety=Safety(3.0, 5, 100, 3, 1000),
    seed=3,
)


def changed(words, stage=STAGE):
    return override(stage, words.split())


def test_words_change_a_stage():
    got = changed(
        "--rows.rows 64 --learning-rate.projector 1e-4 --learning_rate.decoder=2e-5 --optimizer.rule muon --steps 10 "
        "--budgets full hired:0.2 --compute.scan false --optimizer.clip 1 --lora.rank 8 --data.mixture=x=0.5+z=0.5"
    )
    expected = dataclasses.replace(
        STAGE,
        rows=Rows(64, tiles=4),
        learning_rate={"projector": 1e-4, "decoder": 2e-5},
        optimizer=Optimizer("muon", clip=1.0),
        steps=10,
        budgets=("full", "hired:0.2"),
        compute=Compute(scan=False),
        lora=Lora(rank=8),
        data=Data("x=0.5+z=0.5"),
    )
    assert got == expected and type(got.optimizer.clip) is float
    assert changed("") == STAGE


def test_none_takes_away():
    got = changed("--lora none --steps none --learning-rate.tower none --optimizer.decay none --new none", FULL)
    assert got.lora is None and got.steps is None and set(got.learning_rate) == {"projector", "decoder"}
    assert got.new is None and got.optimizer.decay == "none"


def test_parts_can_be_put_in_the_place_of_a_start():
    words = "--start none --parts.decoder d --parts.tower t --parts.layout nvila --parts.projector linear"
    assert changed(words).parts == Parts("d", "t", "nvila", "linear") and changed(words).start is None


def test_contents_of_a_new_model():
    got = changed(
        "--new.config.text_config.width 128 --new.config.model_type=llava_next --new.config.sizes [[1,1]]", FULL
    )
    assert got.new.config == {"model_type": "llava_next", "sizes": [[1, 1]], "text_config": {"width": 128, "eps": 1e-5}}
    assert FULL.new.config["text_config"]["width"] == 64
    with pytest.raises(
        ConfigError, match=r"--new.config.text_config.wdth.* Did you mean --new.config.text-config.width"
    ):
        changed("--new.config.text_config.wdth 128", FULL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optimiser.rule muon", r"unknown key --optimiser.rule. Did you mean --optimizer.rule\?"),
        ("--rows.row 3", r"unknown key --rows.row. Did you mean --rows.rows\?"),
        ("--rule muon", r"unknown key --rule. Did you mean --optimizer.rule\?"),
        ("--budget full", r"Did you mean --budgets\?"),
        ("--learning-rat.projector 1", r"unknown key --learning-rat.projector. Did you mean --learning-rate.projector"),
        ("--xyzzy 1", "unknown key --xyzzy. --help lists all keys"),
        ("--rows.rows.rows 1", "unknown key --rows.rows.rows"),
        ("--optimizer.rule moun", "optimizer.rule: got 'moun'. Did you mean 'muon'"),
        ("--optimizer.rule sgd1", "It has to be adamw | muon | adafactor"),
        ("--rows.rows many", "rows.rows: got 'many'. It has to be a whole number"),
        ("--rows.rows 1.5", "rows.rows: got '1.5'"),
        ("--rows.rows", "rows.rows: got 'nothing'"),
        ("--rows.rows 1 2", "rows.rows: got '1 2'"),
        ("--rows.rows none", "rows.rows: got 'none'"),
        ("--rows 32", "rows: got '32'. It has keys of its own: rows, tokens"),
        ("--compute.scan yes", "true | false"),
        ("--learning-rate.projector fast", "learning_rate.projector: got 'fast'. It has to be a number"),
        ("--parts.decoder d", "parts.tower: is missing"),
        ("muon", "got 'muon'. Write --KEY VALUE"),
    ],
)
def test_words_that_are_refused(words, message):
    with pytest.raises(ConfigError, match=message) as error:
        changed(words)
    assert error.value.exit_code == 3


def test_every_key_is_explained():
    known = keys()
    assert len({key.name for key in known}) == len(known) > 40
    assert all(len(key.doc) > 5 for key in known)
    text = printed(help_of_keys())
    assert "--learning-rate.GROUP" in text and "adamw | muon | adafactor" in text and "[" not in text


def printed(table):
    console = Console(width=200, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_resolved_stage_is_read_back_exactly():
    for stage in STAGE, FULL:
        again = from_json(to_json(stage))
        assert again == stage and repr(again) == repr(stage)
    assert isinstance(from_json(to_json(FULL)).lora.groups, tuple)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["optimizer"].update(rul="adamw"),
            r"config.json: unknown key 'optimizer.rul'. Did you mean 'optimizer.rule'",
        ),
        (lambda v: v.pop("rows"), "config.json: rows: is missing. It is a section"),
        (lambda v: v["rows"].update(rows="32"), "config.json: rows.rows: got '32'"),
        (lambda v: v["compute"].update(scan=1), "config.json: compute.scan: got 1"),
        (lambda v: v["rows"].update(rows=True), "config.json: rows.rows: got True"),
        (lambda v: v["rows"].update(rows=-1), "rows.rows: got -1. It has to be 1 or more"),
        (lambda v: v.update(budgets="full"), "config.json: budgets: got 'full'. It has to be a list of text"),
        (lambda v: v.update(optimizer=None), "config.json: optimizer: got None"),
    ],
)
def test_a_stored_stage_that_is_wrong(change, message):
    values = json.loads(to_json(STAGE))
    change(values)
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(values))


def test_a_stored_stage_that_is_cut_off():
    with pytest.raises(ConfigError, match=r"run/config.json: is no JSON"):
        from_json(to_json(STAGE)[:-20], where="run/config.json")


def test_what_is_shown():
    stage = changed("--rows.rows 64 --learning-rate.decoder 1e-5 --lora.rank 8 --data.style plain", STAGE)
    lines = [line.split() for line in printed(show(stage, STAGE)).splitlines()]
    assert lines[0] == ["a/b"]
    assert ["rows", "64", "page:", "32"] in lines and ["tokens", "4,096"] in lines
    assert ["decoder", "1e-05", "page:", "none"] in lines and ["projector", "0.001"] in lines
    assert ["rank", "8", "page:", "none"] in lines and ["style", "plain", "page:", "none"] in lines
    assert not any("page:" in line for line in printed(show(stage)).split())
    long = changed(f"--data.mixture {'+'.join(f'set_{i}' for i in range(90))}")
    assert "set_89" in printed(show(long))
    away = printed(show(dataclasses.replace(FULL, lora=None, learning_rate={"tower": 1.0}), FULL))
    assert (
        "lora.rank" in away.partition("taken away")[2]
        and "learning_rate.decoder" in away
        and "a.json (2 characters)" in away
    )


PAGE = """
from train.recipe import Data, Rows, Stage
STAGE = Stage("{name}", {{"projector": 1e-3}}, Rows(8), Data("x"), start="s"{more})
"""


def write(path, name="n", more=""):
    path.write_text(PAGE.format(name=name, more=more))
    return str(path)


def test_pages_and_folders(tmp_path):
    page = write(tmp_path / "one.py")
    assert load(page).rows == Rows(8)
    assert load(page, ["--rows.rows", "16"]).rows.rows == 16
    (tmp_path / "__init__.py").write_text(PAGE.format(name="n/a", more="") + "STAGES = (STAGE,)")
    assert [stage.name for stage in load_all(str(tmp_path), ["--seed", "4"])] == ["n/a"]
    (tmp_path / "__init__.py").write_text(PAGE.format(name="n/a", more="") + "STAGES = (STAGE, STAGE)")
    with pytest.raises(ConfigError, match="two stages have one name"):
        load_all(str(tmp_path))
    assert len(load_all("vila_7b")) == 3 and load("vila_7b/align") == load(str(CONFIGS / "vila_7b" / "align.py"))
    with pytest.raises(ConfigError, match=r"vila_7b has 3 stages. Name one: vila_7b/align, "):
        load("vila_7b")


def test_pages_that_cannot_be_run(tmp_path):
    for name in "vila_7b/algin", "configs/vila_7b/algin.py":
        with pytest.raises(ConfigError, match=r"there is no page .* Did you mean configs/vila_7b/align\?"):
            load(name)
    page = tmp_path / "p.py"
    for text, message in [
        ("STAGE = Stag()", r"p.py:1: the page cannot be run: NameError"),
        ("x = (", r"p.py:1: the page cannot be run: SyntaxError"),
        ("from train.recipe import Rows\nSTAGE = Rows(row=1)", r"p.py:2: .*unexpected keyword argument 'row'"),
        ("STAGES = ()", r"p.py: the page has no STAGE. Write STAGE = Stage"),
    ]:
        page.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load(str(page))
    with pytest.raises(ConfigError, match=r"steps: got '100'. It has to be a whole number"):
        load(write(page, more=", steps='100'"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--name ../up", "name: got '../up'"),
        ("--learning-rate.projecter 1", "learning_rate: unknown group 'projecter'. Did you mean 'projector'"),
        ("--learning-rate.projector -1", "learning_rate.projector: got -1.0. It has to be more than 0"),
        ("--learning-rate.projector nan", "learning_rate.projector: got nan"),
        ("--learning-rate.projector none", "nothing is trained"),
        ("--rows.parts 3", "rows.parts: 8 rows cannot be looked at in 3 equal parts"),
        ("--rows.rows 0", "rows.rows: got 0. It has to be 1 or more"),
        ("--start none", "the weights come from nowhere"),
        (
            "--parts.decoder d --parts.tower t --parts.layout vila --parts.projector linear",
            "the weights come from start and parts",
        ),
        ("--start none --parts.decoder d --parts.tower t --parts.layout vila --parts.projector mlp", "projector 'mlp'"),
        ("--data.mixture x+", "is not a data set of a mixture"),
        ("--data.style vicuna", "data.style: unknown conversation style 'vicuna'"),
        ("--data.max-bad-share 2", "data.max_bad_share: got 2.0. It has to be from 0 to 1"),
        ("--steps 0", "steps: got 0"),
        ("--optimizer.b2 1", "optimizer.b2: got 1.0"),
        ("--optimizer.warmup 1.5", "optimizer.warmup: got 1.5"),
        ("--optimizer.weight-decay inf", "optimizer.weight_decay: got inf"),
        ("--safety.spike 1", "safety.spike: got 1.0. It has to be more than 1"),
        ("--budgets hired", "malformed budget"),
        ("--budgets full full", "'full' stands twice"),
        ("--budgets", "budgets: is empty"),
        ("--lora.groups projector", "'projector' takes no additions"),
        ("--lora.rank 8", "the additions to the decoder have no learning rate"),
    ],
)
def test_stages_that_make_no_sense(tmp_path, words, message):
    page = write(tmp_path / "p.py")
    with pytest.raises((ConfigError, BudgetError), match=message) as error:
        load(page, words.split())
    assert isinstance(error.value, VilaError) and "fix" in vars(error.value)
