"""Whole models, picture to logits, against the recorded runs of HiRED's own code and of transformers.

`full` of LLaVA-NeXT is the reference's own full run, which has no newline tokens; `reference_full` is transformers'.
"""

import json
import pathlib

import numpy as np
import pytest

import vila_jax

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "hired_e2e"
CASES = json.loads((FOLDER / "cases.json").read_text())
RUNS = [(case, run) for case, content in CASES.items() for run in content["runs"]]


@pytest.fixture(scope="module")
def models() -> dict[str, vila_jax.Model]:
    names = {case["checkpoint"] for case in CASES.values()}
    return {name: vila_jax.from_pretrained(str(FOLDER / name)) for name in names}


def budget_of(case: str, run: str) -> str | None:
    """The public spec of a recorded run."""
    if run == "reference_full" or (run == "full" and CASES[case]["grid_rows_cols"] is None):
        return None
    settings = CASES[case]["runs"][run]
    alpha = "" if settings["alpha"] is None else f",alpha={settings['alpha']}"
    swap = ",swap=false" if settings["fixed_grid"] else ""
    return f"hired:{settings['token_budget_rate']},variant=code{alpha}{swap}"


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_recorded_run(models: dict[str, vila_jax.Model], case: str, run: str):
    settings, arrays = CASES[case], np.load(FOLDER / f"{case}.npz")
    expected = settings["runs"][run]
    model, images = models[settings["checkpoint"]], [FOLDER / settings["image"]]
    budget = budget_of(case, run)

    logits = model.logits(settings["prompt"], images, budget=budget)
    answer = model.generate(settings["prompt"], images, budget=budget, max_new_tokens=8, ignore_eos=True)

    assert logits.shape[0] == expected["sequence"]
    np.testing.assert_allclose(logits[arrays[f"{run}/text_positions"]], arrays[f"{run}/text_logits"], rtol=0, atol=1e-4)
    assert list(answer.token_ids) == expected["ids"]
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens == expected["sequence"]
    assert answer.usage.visual_tokens_kept == expected["image_tokens"]
