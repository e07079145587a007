"""`vila-jax bench` of every stage, on the smallest preset, from the command line to the JSON file."""

import contextlib
import json

import pytest
from PIL import Image

from vila_jax.bench import machine, meter
from vila_jax.bench.presets import preset
from vila_jax.bench.results import read_results

QUICK = ("--prompt-tokens", "5", "--new-tokens", "3", "--dtype", "float32")
TINY = ("tiny", *QUICK)
VISUAL = 16  # 4 x 4 patches

CLOCKS = {
    "prefill": {"device", "wall"},
    "decode": {"step"},
    "generate": {"wall", "first_token"},
    "vision": {"tower", "tokens", "prepare"},
    "compile": {"vision tower", "visual tokens", "prefill", "decode", "all"},
}


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    """Rates that need no measuring, and the compile cache of the tests."""
    monkeypatch.setattr(machine, "measure_matmul", lambda dtype: 1e12)
    monkeypatch.setattr(machine, "measure_bandwidth", lambda: 1e11)
    monkeypatch.setattr(meter, "_no_compile_cache", contextlib.nullcontext)


@pytest.mark.parametrize("name", CLOCKS)
def test_stage(vila_jax_cli, tmp_path, name):
    file = tmp_path / "out.json"
    repeats = 1 if name == "compile" else 3
    code, text, err = vila_jax_cli("bench", name, *TINY, "--repeats", repeats, "--batch", "2", "--json", file)
    assert (code, err) == (0, "")
    results = read_results(file)
    [row] = results.rows
    assert row.bench == name and row.case["batch"] == 2 and row.case["dtype"] == "float32"
    assert row.times.keys() == CLOCKS[name]
    for times in row.times.values():
        assert 0 < times.p10 <= times.median <= times.p90 and times.repeats == repeats
    assert (row.facts["visual_tokens"], row.facts["sequence"]) == (VISUAL, VISUAL + 5)
    assert row.facts["peak_bytes"] > 0
    if name != "compile":
        least = row.facts["floor_seconds"]
        clock = {"prefill": "device", "decode": "step", "generate": "wall", "vision": "tower"}[name]
        assert least > 0 and row.facts["of_floor"] == pytest.approx(least / row.times[clock].median)
        assert row.facts["planned_bytes"] > 4 * 50_000  # the weights at least
    assert results.settings["command"].startswith(f"vila-jax bench {name} tiny --prompt-tokens 5")
    assert results.settings["rates"]["flops"] == 1e12 and "jax" in results.settings["versions"]
    assert name.capitalize() in text and "measured float32 products" in text and f"Repeats: {repeats}." in text


def test_a_budget_shortens_what_is_counted(vila_jax_cli, tmp_path):
    arguments = ("--repeats", "1", "--budget", "full,hired:0.25,alpha=0.5", "--json", "-", "--markdown", "page.md")
    with contextlib.chdir(tmp_path):
        code, text, err = vila_jax_cli("bench", "prefill", *TINY, *arguments)
        page = (tmp_path / "page.md").read_text()
    assert (code, err) == (0, "")
    full, kept = json.loads(text)["rows"]
    assert (full["case"]["budget"], kept["case"]["budget"]) == (None, "hired:0.25,alpha=0.5")
    assert (full["facts"]["visual_tokens"], kept["facts"]["visual_tokens"]) == (VISUAL, VISUAL // 4)
    for counted in ("flops", "program_flops"):
        assert kept["facts"][counted] < full["facts"][counted]
    # programs multiply all of a mask, and leave out what nobody reads of the last block
    assert 0.9 * full["facts"]["flops"] < full["facts"]["program_flops"] < 2 * full["facts"]["flops"]
    assert "| hired:0.25,alpha=0.5 |" in page and "not edited by hand" in page


def test_fewer_bits(vila_jax_cli, tmp_path):
    file = tmp_path / "out.json"
    arguments = ("--repeats", "1", "--quantize", "int8,kv=int8,force", "--json", file)
    code, _, err = vila_jax_cli("bench", "decode", *TINY, *arguments)
    assert (code, err) == (0, "")
    [row] = read_results(file).rows
    assert row.case["quantize"] == "int8,kv=int8,force" and "quantize int8,kv=int8,force" in row.title
    decoder, layers = preset("tiny").vlm.decoder, 2 * (48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 96)
    outputs, norms = 2 * (48 * 2 + 24 * 2 + 96 * 2 + 48), 2 * 2 * 48
    cache = 2 * 2 * decoder.num_kv_heads * (decoder.head_dim + 4) * (VISUAL + 5 + 1 + 1)
    assert row.facts["bytes"] == layers + 4 * (outputs + norms + 48 * 128) + cache


def test_fewer_bits_are_refused_where_they_are_slower(vila_jax_cli):
    code, _, err = vila_jax_cli("bench", "decode", *TINY, "--quantize", "int8")
    assert code == 13 and "smaller but slower here" in err and "int8,force" in err


def test_sweep(vila_jax_cli, tmp_path):
    out = tmp_path / "new" / "sweep"
    cells = ("--batch", "1,2", "--budget", "full,hired:5000", "--benches", "prefill,decode", "--repeats", "1")
    code, text, err = vila_jax_cli("bench", "sweep", *TINY, *cells, "--out", out)
    assert (code, err) == (0, "")
    assert {path.name for path in out.iterdir()} == {"sweep.md", "sweep.json", "sweep.png"}
    rows = read_results(out / "sweep.json").rows
    assert [(row.bench, row.case["batch"], row.refused is None) for row in rows] == [
        (bench, batch, fits) for batch in (1, 2) for fits in (True, False) for bench in ("prefill", "decode")
    ]
    assert all("5000" in row.refused for row in rows if row.refused)
    assert "5000" in text and "| 1 | full |" in (out / "sweep.md").read_text()
    with Image.open(out / "sweep.png") as image:
        image.load()


def test_experiment_of_hired(vila_jax_cli):
    arguments = ("--batch", "1", "--budget", "full,hired:0.25", "--repeats", "1", "--json", "-")
    code, text, err = vila_jax_cli("bench", "hired", *TINY, *arguments)
    assert (code, err) == (0, "")
    full, kept = json.loads(text)["rows"]
    assert full["case"]["picture"] == 1000
    assert full["facts"]["gain_of_wall"] == full["facts"]["gain_of_first_token"] == 1
    assert kept["facts"]["gain_of_wall"] == full["times"]["wall"]["median"] / kept["times"]["wall"]["median"]
    assert kept["facts"]["gain_of_floor"] > 1
    wall = kept["times"]["wall"]["median"]
    assert kept["facts"]["tokens_per_second_of_wall"] == pytest.approx(3 / wall)


def test_load(vila_jax_cli):
    code, text, err = vila_jax_cli("bench", "load", "tiny", "--repeats", "1", "--json", "-")
    assert (code, err) == (0, "")
    [row] = json.loads(text)["rows"]
    assert row["times"].keys() == {"load", "mapped_load", "plain_read", "kept_read"}
    assert row["facts"]["peak_bytes"] > 0 and 0 <= row["facts"]["mapped"] <= 1
    for read in ("plain_read", "kept_read"):
        fraction = row["times"][read]["median"] / row["times"]["load"]["median"]
        assert row["facts"][f"of_{read}"] == pytest.approx(fraction)


def test_train(vila_jax_cli):
    arguments = ("--repeats", "2", "--samples", "2", "--chunk", "16", "--dtype", "float32", "--json", "-")
    code, text, err = vila_jax_cli("bench", "train", "tiny", *arguments)
    assert (code, err) == (0, "")
    [row] = json.loads(text)["rows"]
    assert row["times"]["step"]["repeats"] == 2 and row["facts"]["trained"] < row["facts"]["parameters"]
    assert row["facts"]["tokens_per_second"] == pytest.approx(128 / row["times"]["step"]["median"])


def test_peer(vila_jax_cli):
    arguments = ("--dtypes", "float32", "--no-compile", "--repeats", "1", "--batch", "2", "--budget", "hired:0.25")
    code, text, _ = vila_jax_cli("bench", "peer", *TINY, *arguments, "--json", "-")
    assert code == 0
    ours, fewer, theirs = json.loads(text)["rows"]
    assert [row["case"]["side"] for row in (ours, fewer, theirs)] == [
        "vila_jax",
        "vila_jax, hired:0.25",
        "PyTorch, sdpa",
    ]
    assert ours["facts"]["logit_difference"] < 1e-4 and ours["facts"]["same_ids"] is True
    assert theirs["facts"]["prefill_against_peer"] == theirs["facts"]["decode_against_peer"] == 1
    assert "torch" in json.loads(text)["settings"]["versions"]


@pytest.mark.parametrize(
    ("words", "expected", "named"),
    [
        (("prefill", "llava-1.5-7"), 3, "llava-1.5-7b"),
        (("load", "tinny"), 3, "tiny"),
        (("train", "8b-full"), 3, "8b-full"),
        (("prefill", "tiny", "--budget", "hierd:0.2", *QUICK), 7, "hired"),
        (("prefill", "tiny", "--json", "no/such/a.json"), 1, "no folder no/such"),
        (("prefill", "tiny", "--markdown", "no/such/a.md"), 1, "no folder no/such"),
        (("prefill", "tiny", "--batch", "1,x"), 2, "expected a whole number"),
        (("prefill", "tiny", "--batch", ""), 2, "expected a whole number"),
        (("prefill", "tiny", "--rates", "sheet", *QUICK), 1, "no data sheet"),
        (("decode", "tiny", "--new-tokens", "1", "--dtype", "float32"), 1, "no step after the first token"),
        (("peer", "tiny", "--new-tokens", "1"), 1, "no step after the first token"),
        (("peer", "tiny", "--dtypes", "float64"), 1, "float64"),
        (("prefill", "tiny", "--prompt-tokens", "9999", "--dtype", "float32"), 6, "context is 4096"),
        (("sweep", "tiny", "--benches", "prefil", "--out", "x"), 1, "prefil"),
        (("compare", "missing.json", "missing.json"), 1, "missing.json"),
    ],
)
def test_broken_requests(vila_jax_cli, tmp_path, words, expected, named):
    with contextlib.chdir(tmp_path):
        code, text, err = vila_jax_cli("bench", *words)
    assert (code, text) == (expected, "")
    assert named in err


def test_transformers_has_no_vila(vila_jax_cli, monkeypatch):
    from vila_jax.bench import presets

    small = presets._clip(32, 64, 3, 4, 56)
    decoder = presets._decoder("llama", 48, 96, 2, 4, 128)
    monkeypatch.setitem(presets._CONFIGS, "vila-7b", presets._vila(small, decoder, "mlp2x_gelu"))
    code, _, err = vila_jax_cli("bench", "peer", "vila-7b", "--dtypes", "float32", *QUICK[:4])
    assert code == 1 and "llava-1.5-7b" in err
