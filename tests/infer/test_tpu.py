"""Programs lowered for TPUs on a machine without one: tower and prefill call the flash kernel, decoding needs none.

Lowering checks shapes, block sizes and what the kernel may say. Compiling is a TPU's own business, and was not done.
"""

import re

import pytest

from tests.infer.unrun import programs_of
from vila_jax.bench.presets import preset_json
from vila_jax.bench.subject import Case
from vila_jax.nn import attention, products

KERNEL = "tpu_custom_call"


def few_layers(name):
    """A preset of published widths with two blocks in the decoder, and three in the tower, of which two are run."""
    data = preset_json(name)
    for tower, decoder in (("vision_config", "text_config"), ("vision_tower_cfg", "llm_cfg")):
        if tower in data:
            data[tower]["num_hidden_layers"], data[decoder]["num_hidden_layers"] = 3, 2
    return data


@pytest.fixture(autouse=True)
def on_one_tpu(monkeypatch):
    """Kernels and products are chosen as there."""
    monkeypatch.setattr(products, "on_cpu", lambda: False)
    monkeypatch.setattr(attention, "choose_implementation", lambda *args, **rest: "splash")


@pytest.mark.parametrize("name", ["llava-1.5-7b", "nvila-8b"])
@pytest.mark.parametrize("budget", [None, "hired:0.2"])
def test_programs_lower(name, budget):
    programs, layout = programs_of(few_layers(name), Case(1, budget, 100, 9, 896), "bfloat16")
    exported = {name: program.export("tpu") for name, program in programs.items()}
    assert exported.keys() == {"vision tower", "visual tokens", "prefill", "decode"}
    texts = {name: program.mlir_module() for name, program in exported.items()}
    assert all(program.platforms == ("tpu",) for program in exported.values())
    assert {name for name, text in texts.items() if KERNEL in text} == {"vision tower", "prefill"}
    length = layout.prompts.token_ids.shape[1]
    assert not re.search(rf"x{length}x{length}x", texts["prefill"]), "scores are held nowhere"
    assert texts["decode"].count("tf.aliasing_output") >= 2 * 2, "keys and values of two layers"
