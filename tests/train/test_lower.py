"""The plan of a stage's memory against what the compiler says, and a stage of 7 B for 64 devices."""

import dataclasses
import re
import subprocess
import sys

import pytest

from tests.published import LLAVA_15_7B
from train import recipe
from train.lora import Lora
from train.lower import lower_stage
from train.memory import GIB, MemoryPlan, check_memory
from vila_jax.dist import make_mesh
from vila_jax.errors import ConfigError
from vila_jax.hf.config import parse_config

SMALL = {
    "vision_config": {
        **LLAVA_15_7B["vision_config"],
        **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4},
        **{"image_size": 56, "projection_dim": 64},
    },
    "text_config": {
        **LLAVA_15_7B["text_config"],
        **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4},
        **{"num_key_value_heads": 4, "vocab_size": 512},
    },
}
STAGE = recipe.Stage(
    name="x",
    learning_rate={"projector": 1e-3, "decoder": 1e-4},
    rows=recipe.Rows(rows=16, tokens=256, tiles=2),
    data=recipe.Data("x"),
    start="x",
    compute=recipe.Compute(dtype="float32", chunk=64),
)
FACTOR = 1.6
"""The plan lies between the compiler's need divided and multiplied by this."""


def plan_and_need(**changes):
    config = parse_config(LLAVA_15_7B | SMALL | {"image_token_index": 511}).vlm
    ahead = lower_stage(dataclasses.replace(STAGE, **changes), config, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    found = ahead.lowered.compile().memory_analysis()
    return ahead.plan, found.argument_size_in_bytes, found.temp_size_in_bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"compute": recipe.Compute(dtype="float32", chunk=64, remat="full")},
        {"compute": recipe.Compute(dtype="float32", chunk=64, remat="none")},
        {"learning_rate": {"tower": 1e-5, "projector": 1e-4, "decoder": 1e-4}},
        {"lora": Lora(rank=4)},
    ],
    ids=["full", "none", "tower", "lora"],
)
def test_the_plan_is_what_the_compiler_needs(changes):
    plan, arguments, temporary = plan_and_need(**changes)
    assert sum(plan.arguments.values()) == pytest.approx(arguments, rel=0.01)
    total = arguments + temporary
    assert total / FACTOR < plan.total < total * FACTOR, f"{plan.table()}\n{arguments=} {temporary=}"


def test_too_much_is_refused_with_what_to_change():
    plan = MemoryPlan({"frozen weights": 2 * GIB, "optimizer and average": 9 * GIB}, {"busiest moment": 4 * GIB})
    check_memory(plan, None)
    check_memory(plan, 15 * GIB)
    with pytest.raises(ConfigError, match=r"(?s)memory: a device needs 15.0 GiB and has 12.0.*total.*fsdp.*adafactor"):
        check_memory(plan, 12 * GIB)
    plan = MemoryPlan({"frozen weights": 2 * GIB}, {"activations kept (none)": 4 * GIB})
    with pytest.raises(ConfigError, match=r"remat='full'.*fewer `rows.rows`"):
        check_memory(plan, GIB)


@pytest.mark.slow
def test_a_stage_of_7b_for_64_devices():
    page = ["configs/llava15_7b/sft.py", "--rows.rows", "128", "--rows.parts", "2"]
    command = [sys.executable, "-m", "train", "lower", *page, "--model", "llava-1.5-7b", "--devices", "64"]
    said = subprocess.run([*command, "--mesh", "fsdp=64"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    sizes = dict(re.findall(r"^(.+?) +([\d.]+) GiB$", said.stdout, flags=re.MULTILINE))
    trained = 6.76e9 * 4 / 64 / GIB
    assert float(sizes["trained weights"]) == pytest.approx(trained, rel=0.03)
    assert float(sizes["optimizer and average"]) == pytest.approx(2 * trained, rel=0.03)
    assert float(sizes["arguments"]) == pytest.approx(3 * trained + 0.3 / 64, rel=0.1)
    refused = subprocess.run([*command, "--memory-gib", "1"], capture_output=True, text=True, check=False)
    assert refused.returncode == ConfigError.exit_code and "Try" in refused.stderr
