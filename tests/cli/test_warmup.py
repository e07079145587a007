"""`vila-jax warmup`: what it has compiled is not compiled again."""

import json
import pathlib

import jax
import pytest
from PIL import Image

from tests.compilations import counter
from vila_jax.cli import cache
from vila_jax.infer.sampler import SamplingOptions
from vila_jax.model import from_pretrained
from vila_jax.warmup import warm_up

VILA = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "programs"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_requests_of_the_buckets_compile_nothing(llava, photo):
    model, prompts = from_pretrained(llava), ["<image> hello", "<image> " + "hello " * 20]

    def length(prompt: str, budget: str | None) -> int:
        usage = model.generate(prompt, [photo], budget=budget, max_new_tokens=1).usage
        return usage.prompt_tokens

    lengths = {budget: [length(prompt, budget) for prompt in prompts] for budget in (None, "hired:4")}
    warmed = [one for budget, own in lengths.items() for one in warm_up(model, own, budgets=[budget], new_tokens=80)]
    warmed += warm_up(model, lengths[None][:1], new_tokens=80, sampling=SamplingOptions(temperature=1.0))
    assert [one.budget for one in warmed] == [None, None, "hired:4", "hired:4", None]
    assert all(one.cache >= one.bucket > 0 for one in warmed)
    assert warmed[0].compile_time > 0
    with counter() as count:
        for budget in lengths:
            for prompt in prompts:
                model.generate(prompt, [photo], budget=budget, max_new_tokens=80)
        model.generate(prompts[0], [photo], max_new_tokens=80, temperature=0.7)
    assert count() == 0


@pytest.mark.parametrize("name", ["nvila_lite_qwen2_dynamic", "v1arch_llama_clip_pad"])
def test_prompts_that_begin_with_a_picture(name):
    model, prompt, image = from_pretrained(VILA / name), "<image> What is this?", Image.new("RGB", (90, 40))
    [row], _ = model.engine.planner.rows([model.request(prompt, [image])], None, 4)
    [one] = warm_up(model, [row.count.prompt], image_size=(40, 90), new_tokens=4)
    with counter() as count:
        usage = model.generate(prompt, [image], max_new_tokens=4).usage
    assert count() == 0 and row.count.prompt == usage.prompt_tokens <= one.bucket <= one.cache


def test_the_object_says_what_was_compiled(vila_jax_cli, llava, tmp_path):
    code, out, err = vila_jax_cli("warmup", llava, "--json", "--max-new-tokens", 4)
    said = json.loads(out)
    assert (code, err) == (0, "")
    assert said["cache"] == str(tmp_path / "programs") and len(said["warmed"]) == 1
    assert said["warmed"][0].keys() == {"budget", "bucket", "cache_length", "compile_s"}


def test_the_table_has_a_row_for_each(vila_jax_cli, llava):
    arguments = ("--image-size", "0x0", "--buckets", 10, 40, "--budget", "hired:0.5", "--max-new-tokens", 4)
    code, out, err = vila_jax_cli("warmup", llava, *arguments)
    assert code == 0 and out.count("hired:0.5") == 2 and "added to" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--buckets", 5], "around it are"),
        (["--buckets", 512], "context is 512"),
        (["--budget", "hird:0.2"], "hired"),
        (["--image-size", "large"], "HEIGHTxWIDTH"),
    ],
)
def test_what_cannot_be_compiled(vila_jax_cli, llava, arguments, said):
    code, _, err = vila_jax_cli("warmup", llava, *arguments)
    assert code != 0 and said in err


def test_without_a_cache_there_is_nothing_to_do(vila_jax_cli, llava, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "off")
    code, _, err = vila_jax_cli("warmup", llava)
    assert code == 3 and cache.VARIABLE in err
