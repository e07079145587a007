"""`vila-jax inspect`: numbers of published models, and folders without weights."""

import json

import pytest

from tests.published import LLAVA_15_7B, LLAVA_NEXT_MISTRAL_7B, LLAVA_NEXT_VICUNA_7B
from vila_jax.hf.safetensors import Shard


@pytest.fixture
def inspect(vila_jax_cli):
    """The JSON object about a model."""

    def run(*arguments):
        code, out, err = vila_jax_cli("inspect", *arguments, "--json")
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.fixture
def published(tmp_path):
    """Makes a folder that holds a config alone."""

    def make(config, name="model"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def test_llava_15_7b(inspect, published):
    facts = inspect(published(LLAVA_15_7B), "--dtype", "bfloat16")
    assert facts["architecture"] == "LLaVA-1.5 (CLIP + Llama)"
    assert facts["context"] == 4096
    assert (facts["vision_tower"]["blocks_built"], facts["vision_tower"]["blocks_in_config"]) == (23, 24)
    numbers = {row["part"]: row["parameters"] for row in facts["parameters"]}
    assert numbers["projector"] == 20_979_712
    assert numbers["total"] == 7_063_427_072 - 12_596_224 - 2048  # less one block and the norm after it
    assert facts["parameters"][-1]["bytes"] == 2 * numbers["total"]
    assert facts["memory"]["kv_bytes_per_token"] == 524_288
    [picture] = facts["pictures"]
    assert picture["tokens"] == {"all": 576, "hired:0.4": 230, "hired:0.2": 115, "hired:0.1": 57}


def test_llava_next_counts_tokens_of_every_canvas(inspect, published):
    facts = inspect(published(LLAVA_NEXT_VICUNA_7B), "--budget", "hired:0.2", "--budget", "random:600")
    tokens = {tuple(row["image_size"]): (row["tiles"], *row["tokens"].values()) for row in facts["pictures"]}
    assert tokens == {  # all: 576 + rows x (columns + 1 newline)
        (336, 672): (3, 576 + 24 * 49, 345, 600),
        (672, 336): (3, 576 + 48 * 25, 345, 600),
        (672, 672): (5, 576 + 48 * 49, 576, 600),
        (1008, 336): (4, 576 + 72 * 25, 460, 600),
        (336, 1008): (4, 576 + 24 * 73, 460, 600),
    }


def test_the_cache_of_a_batch_grows_with_its_padded_rows(inspect, published):
    folder = published(LLAVA_NEXT_MISTRAL_7B)
    plans = inspect(folder, "--batch", 3, "--dtype", "bfloat16", "--budget", "hired:0.2")["memory"]["plans"]
    assert [plan["budget"] for plan in plans] == ["all", "hired:0.2"]
    assert [plan["prompt_tokens"] for plan in plans] == [2928 + 64, 576 + 64]
    # 8 key/value heads of 128 in 32 layers: 128 KiB a token; 576 + 64 + 128 fill a bucket of 768; 3 rows become 4
    assert plans[1]["cache_bytes"] == 4 * 768 * 131_072


def test_a_budget_inside_the_decoder_shortens_the_caches_behind_it(inspect, published):
    folder = published(LLAVA_NEXT_MISTRAL_7B)
    full, half = inspect(folder, "--dtype", "bfloat16", "--budget", "fastv:0.5,layer=2")["memory"]["plans"]
    # 2928 + 64 + 128 fill a bucket of 3840, 1464 + 64 + 128 one of 1920; 4 KiB a token and layer
    assert (full["cache_bytes"], half["cache_bytes"]) == (32 * 3840 * 4096, (2 * 3840 + 30 * 1920) * 4096)
    assert 0.5 < half["prefill_flops"] / full["prefill_flops"] < 0.65


def test_a_budget_that_some_canvas_cannot_meet_is_no_error(inspect, published):
    rows = inspect(published(LLAVA_NEXT_VICUNA_7B), "--budget", "hired:2500")["pictures"]
    kept = {tuple(row["image_size"]): row["tokens"]["hired:2500"] for row in rows}
    assert kept == {(336, 672): None, (672, 336): None, (672, 672): 2500, (1008, 336): None, (336, 1008): None}


def test_what_does_not_fit_the_context_is_said(vila_jax_cli, published):
    text = {**LLAVA_NEXT_VICUNA_7B["text_config"], "max_position_embeddings": 2048}
    code, out, _ = vila_jax_cli("inspect", published({**LLAVA_NEXT_VICUNA_7B, "text_config": text}))
    assert code == 0
    assert "over context" in next(line for line in out.splitlines() if line.startswith("all") and "—" in line)


def test_original_positions_need_the_context_of_all_tokens(inspect, published):
    text = {**LLAVA_NEXT_VICUNA_7B["text_config"], "max_position_embeddings": 2048}
    folder = published({**LLAVA_NEXT_VICUNA_7B, "text_config": text})
    specs = "hired:0.1", "hired:0.1,positions=original"
    plans = inspect(folder, *(word for spec in specs for word in ("--budget", spec)))["memory"]["plans"]
    assert [plan["fits_context"] for plan in plans] == [False, True, False]


def test_the_folder_of_a_whole_model(inspect, llava, monkeypatch):
    monkeypatch.setattr(Shard, "read", lambda *_: pytest.fail("a weight was read"))
    facts = inspect(llava)
    weights, prompts = facts["weights"], facts["prompts"]
    assert (weights["usable"], weights["problem"], weights["files"]) == (True, None, 1)
    assert weights["tensors_used"] == weights["tensors"] > 40
    assert weights["bytes"] == 4 * facts["parameters"][-1]["parameters"]
    assert prompts["special_tokens"]["image"] == {"ids": [4], "text": "<image>"}
    assert prompts["special_tokens"]["eos"] == {"ids": [2], "text": "</s>"}
    assert (prompts["chat_template"], prompts["styles"]) == (False, ["vicuna_v1"])


def test_tables_show_the_numbers_of_the_object(vila_jax_cli, inspect, llava_next):
    facts = inspect(llava_next)
    _, out, _ = vila_jax_cli("inspect", llava_next)
    for row in facts["parameters"]:
        assert f"{row['parameters']:,}" in out
    for row in facts["pictures"]:
        line = next(line for line in out.splitlines() if line.startswith("{} x {} ".format(*row["image_size"])))
        assert line.split()[-4:] == [f"{n:,}" for n in row["tokens"].values()]


def test_a_folder_without_weights_is_described_and_says_so(vila_jax_cli, inspect, published):
    folder = published(LLAVA_15_7B)
    weights = inspect(folder)["weights"]
    assert not weights["usable"]
    assert "there are no weights" in weights["problem"]
    code, out, _ = vila_jax_cli("inspect", folder)
    assert code == 0
    assert "there are no weights" in out
    assert "holds no tokenizer" in out


def test_pickles_are_described_as_not_usable(inspect, published):
    folder = published(LLAVA_15_7B)
    (folder / "pytorch_model.bin").write_text("no one opens this")
    assert "save_pretrained" in inspect(folder)["weights"]["problem"]


def test_tensors_that_do_not_fit_the_config(inspect, llava, tmp_path):
    config = json.loads((llava / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((llava / "model.safetensors").read_bytes())
    assert "language_model.model.layers.2.self_attn.q_proj.weight" in inspect(tmp_path)["weights"]["problem"]


def test_a_tower_without_class_token_has_hired_too(inspect, published):
    siglip = {**LLAVA_15_7B["vision_config"], "model_type": "siglip_vision_model"}
    config = {**LLAVA_15_7B, "vision_config": siglip, "vision_feature_select_strategy": "full"}
    assert list(inspect(published(config))["pictures"][0]["tokens"])[1:] == ["hired:0.4", "hired:0.2", "hired:0.1"]


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        (LLAVA_15_7B, ("--budget", "hird:0.2"), 7),
        (LLAVA_15_7B | {"model_type": "bert"}, (), 3),
        ({**LLAVA_15_7B, "quantization_config": {"bits": 4}}, (), 3),
    ],
)
def test_what_cannot_be_described(vila_jax_cli, published, config, arguments, expected):
    code, out, err = vila_jax_cli("inspect", published(config), *arguments, "--json")
    assert (code, out) == (expected, "")
    assert err.startswith("error: ")
