"""Whole checkpoints with odd configs against Hugging Face: its models, its processors, its `generate`."""

import numpy as np
import pytest
import torch

import vila_jax
from tests.infer.checkpoints import EOS, Written, photo, write

ODD_LLAMA = {"head_dim": 10, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 3e-4}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "max_position_embeddings": 48,
}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
MODELS = {
    "clip-llama": {
        "text_args": ODD_LLAMA | THETA,
        "vision_feature_layer": [-2, 1],
        "multimodal_projector_bias": False,
        "tie_word_embeddings": True,
    },
    "siglip-qwen2": {
        "vision": "siglip",
        "text": "qwen2",
        "vision_args": {"image_size": 30, "num_attention_heads": 2},
        "vision_feature_layer": -1,
    },
    "next-clip-mistral": {
        "text": "mistral",
        "next_": True,
        "text_args": {"sliding_window": 9, "head_dim": 8} | THETA,
        "image_grid_pinpoints": PINPOINTS,
    },
    "next-clip-llama-dynamic": {
        "next_": True,
        "vision_args": {"image_size": 42, "patch_size": 14},
        "text_args": DYNAMIC,
        "image_grid_pinpoints": [[42, 84], [126, 42]],
        "vision_feature_layer": [0, -1],
    },
}
WIDE, TALL, NARROW = photo(33, 71), photo(90, 41), photo(23, 150)
PROMPTS = {
    "one image": ("w5 w6 <image> w7 w8 w9", [WIDE]),
    "two images": ("<image> w31 <image> w32 w33 w34 w35", [NARROW, TALL]),
    "text only": ("w40 w41 w42", []),
}
NEW_TOKENS = 10


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory) -> tuple[Written, vila_jax.Model]:
    theirs = write(tmp_path_factory.mktemp(request.param), **MODELS[request.param])
    return theirs, vila_jax.from_pretrained(theirs.folder, dtype="float32")


def encode(theirs: Written, prompts, images):
    return theirs.processor(text=prompts, images=images or None, padding=True, return_tensors="pt")


def generate(theirs: Written, prompts, images) -> list[list[int]]:
    """Greedy ids of every row, up to the end token."""
    inputs = encode(theirs, prompts, images)
    with torch.no_grad():
        out = theirs.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    rows = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


def check(theirs: Written, ours: vila_jax.Model, case: str):
    prompt, images = PROMPTS[case]
    with torch.no_grad():
        expected = theirs.model(**encode(theirs, [prompt], images)).logits[0].numpy()

    logits = ours.logits(prompt, images)
    answer = ours.generate(prompt, images, max_new_tokens=NEW_TOKENS)

    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert [list(answer.token_ids)] == generate(theirs, [prompt], images)
    assert answer.usage.prompt_tokens == len(expected)


@pytest.mark.parametrize("case", PROMPTS)
def test_logits_and_greedy_ids(both, case):
    check(*both, case)


def test_class_token_among_the_visual_tokens(tmp_path):
    theirs = write(tmp_path, vision_feature_select_strategy="full", projector_hidden_act="relu")
    check(theirs, vila_jax.from_pretrained(tmp_path, dtype="float32"), "two images")


def test_batch_of_unequal_rows(both):
    theirs, ours = both
    prompts, images = [list(parts) for parts in zip(*PROMPTS.values(), strict=True)]
    answers = ours.generate(prompts, images, max_new_tokens=NEW_TOKENS)
    expected = generate(theirs, prompts, [image for own in images for image in own])
    if ours.config.vlm.decoder.rope.scaling == "dynamic":  # theirs stretches all rows by the longest of the batch
        expected = [generate(theirs, [prompt], own)[0] for prompt, own in PROMPTS.values()]
    assert [list(answer.token_ids) for answer in answers] == expected
