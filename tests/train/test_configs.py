"""Recipe pages: all of them load, and say what the papers and their scripts say."""

from typing import NamedTuple

import pytest

from train.data.mixture import parse_mixture
from train.pages import CONFIGS, from_json, load, load_all, to_json
from train.recipe import Compute, Optimizer

P, PD, TP, ALL = ("projector",), ("projector", "decoder"), ("tower", "projector"), ("tower", "projector", "decoder")


class Said(NamedTuple):
    """What is said of a stage: groups and rate, samples in a batch, longest sample, how many fill a row, data sets."""

    groups: tuple[str, ...]
    rate: float
    batch: int
    length: int
    of_a_row: float
    sets: int


TABLE = {
    "vila_7b/align": Said(P, 1e-3, 256, 2048, 3, 1),
    "vila_7b/pretrain": Said(PD, 5e-5, 1024, 4096, 1.6, 2),
    "vila_7b/sft": Said(PD, 2e-5, 128, 4096, 5.4, 2),
    "vila_13b/align": Said(P, 1e-3, 256, 2048, 3, 1),
    "vila_13b/pretrain": Said(PD, 5e-5, 1024, 4096, 1.6, 2),
    "vila_13b/sft": Said(PD, 2e-5, 128, 4096, 5.4, 2),
    "vila15_3b/align": Said(P, 1e-3, 256, 4096, 18, 1),
    "vila15_3b/pretrain": Said(PD, 5e-5, 1024, 4096, 3.8, 3),
    "vila15_3b/sft": Said(ALL, 1e-4, 1024, 4096, 6.8, 19),
    "vila15_8b/align": Said(P, 1e-3, 256, 4096, 18, 1),
    "vila15_8b/pretrain": Said(PD, 5e-5, 1024, 4096, 3.8, 3),
    "vila15_8b/sft": Said(ALL, 1e-4, 1024, 4096, 6.8, 19),
    "nvila_lite_8b/align": Said(P, 1e-3, 2048, 4096, 3, 1),
    "nvila_lite_8b/tower": Said(TP, 5e-5, 1024, 4096, 3, 1),
    "nvila_lite_8b/pretrain": Said(PD, 5e-5, 1024, 4096, 3, 1),
    "nvila_lite_8b/sft": Said(ALL, 2e-5, 2048, 4096, 3, 1),
    "llava15_7b/align": Said(P, 1e-3, 256, 2048, 3, 1),
    "llava15_7b/sft": Said(PD, 2e-5, 128, 2048, 2.3, 1),
}
BASES = {  # decoder, tower, projector, pictures
    "vila_7b": ("Llama-2-7b-hf", "clip-vit-large-patch14-336", "mlp2x_gelu", "pad"),
    "vila_13b": ("Llama-2-13b-hf", "clip-vit-large-patch14-336", "mlp2x_gelu", "pad"),
    "vila15_3b": ("Sheared-LLaMA-2.7B", "siglip-so400m-patch14-384", "mlp_downsample", "resize"),
    "vila15_8b": ("Meta-Llama-3-8B-Instruct", "siglip-so400m-patch14-384", "mlp_downsample", "resize"),
    "nvila_lite_8b": (
        "Qwen2-VL-7B-Instruct",
        "paligemma-siglip-so400m-patch14-448",
        "mlp_downsample_3x3_fix",
        "dynamic",
    ),
    "llava15_7b": ("vicuna-7b-v1.5", "clip-vit-large-patch14-336", "mlp2x_gelu", "pad"),
}
AS_PUBLISHED = Optimizer("adamw", 0.9, 0.999, weight_decay=0.0, clip=None, warmup=0.03, decay="cosine", last=0.0)


@pytest.mark.parametrize("name", TABLE)
def test_a_page_says_what_was_published(name):
    stage, said = load(name), TABLE[name]
    assert stage.name == name
    assert stage.learning_rate == dict.fromkeys(said.groups, said.rate)
    assert stage.rows.tokens == said.length
    assert stage.rows.rows * said.of_a_row == pytest.approx(said.batch, rel=0.13)
    assert stage.rows.rows % 8 == 0 and stage.rows.rows // stage.rows.parts % 8 == 0
    assert stage.steps is None and stage.optimizer == AS_PUBLISHED and stage.compute == Compute()
    terms = parse_mixture(stage.data.mixture)
    assert len(terms) == said.sets and all(term.times == 1 and term.share is None for term in terms)
    assert from_json(to_json(stage)) == stage


@pytest.mark.parametrize("recipe", BASES)
def test_stages_follow_one_another(recipe):
    first, *later = stages = load_all(str(CONFIGS / recipe))
    assert [stage.name for stage in stages] == [name for name in TABLE if name.startswith(f"{recipe}/")]
    assert [stage.start for stage in later] == [stage.name for stage in stages[:-1]]
    parts = first.parts
    assert (parts.decoder.split("/")[1], parts.tower.split("/")[1], parts.projector, parts.pictures) == BASES[recipe]
    assert parts.layout == ("llava" if recipe == "llava15_7b" else "nvila" if recipe == "nvila_lite_8b" else "vila")
    is_plain = [stage.data.style == "plain" for stage in stages]
    assert is_plain == [recipe != "nvila_lite_8b", *[False] * len(later)]


def test_every_page_is_tested():
    found = {
        str(page.relative_to(CONFIGS).with_suffix("")) for page in CONFIGS.glob("*/*.py") if "nano" not in page.parts
    }
    assert {name for name in found if not name.endswith("__init__")} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_page_is_one_screen_that_begins_with_its_source_and_command(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 50
    head = text.split('"""')[1]
    assert f"python -m train configs/{name}.py" in head and "Source: " in head
