"""What a batch, a budget, a seed, a stop string and a mesh do to answers; what is refused; what is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import vila_jax
from tests.infer.checkpoints import photo, write
from vila_jax.dist.mesh import make_mesh
from vila_jax.errors import BudgetError, ConfigError, ContextLengthError, PromptError, VilaError
from vila_jax.infer.layout import Request

PROMPT = "w5 <image> w6 w7"
WIDE, TALL, SQUARE, NARROW = photo(33, 71), photo(90, 41), photo(60, 60), photo(23, 150)
ROWS = {
    "w10 <image> w11 <image> w12": [NARROW, SQUARE],
    "w20 w21 w22": [],
    "<image> w30 w31 w32 w33": [TALL],
}
BATCH = {"prompt": list(ROWS), "images": list(ROWS.values())}
SAMPLED = {"max_new_tokens": 20, "temperature": 2.0, "seed": 11}  # greedy answers of random weights repeat themselves


@pytest.fixture(scope="module")
def sampled(model) -> vila_jax.model.Generation:
    """An answer of 20 tokens; the chunks that they come in end after 1, 9, 17 and 20."""
    return model.generate(PROMPT, [WIDE], **SAMPLED, ignore_eos=True)


def ids(answers) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("budget", [None, "hired:0.3", "hired:0.3,variant=code", "random:9"])
def test_rows_of_a_batch_answer_as_alone(model, budget):
    options = {"budget": budget, "max_new_tokens": 11, "ignore_eos": True}
    together = model.generate(**BATCH, **options)
    alone = [model.generate(*row, **options) for row in ROWS.items()]
    assert len(set(ids(together))) == len(ROWS)
    assert ids(together) == ids(alone)
    assert [answer.usage for answer in together] == [answer.usage for answer in alone]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


def test_rows_of_a_batch_sample_as_alone(model):
    options = {"max_new_tokens": 11, "ignore_eos": True, "temperature": 1.0, "top_k": 30}
    seeds = [7, 2**40, 9]
    together = model.generate(**BATCH, **options, seed=seeds)
    alone = [model.generate(*row, **options, seed=seed) for row, seed in zip(ROWS.items(), seeds, strict=True)]
    assert ids(together) == ids(alone)


def test_usage_counts_what_transformers_would_read(model, written):
    for answer, (prompt, images) in zip(model.generate(**BATCH, max_new_tokens=2), ROWS.items(), strict=True):
        read = written.processor(text=[prompt], images=images or None)["input_ids"][0]
        visual = sum(token == model.config.image_token_id for token in read)
        assert answer.usage.prompt_tokens == len(read)
        assert answer.usage.visual_tokens_full == answer.usage.visual_tokens_kept == visual
        assert answer.usage.completion_tokens == len(answer.token_ids) <= 2


@pytest.mark.parametrize("image", [WIDE, TALL, SQUARE, NARROW, photo(300, 3)], ids=lambda image: str(image.size))
def test_kept_tokens_are_known_before_any_pixel(model, image):
    patches = 16 * model.preprocessor.geometry((image.height, image.width)).num_tiles
    for budget, expected in [("hired:0.2", int(patches * 0.2)), ("hired:7", 7)]:
        promised = model.count_tokens((image.height, image.width), budget)
        usage = model.generate(PROMPT, [image], budget=budget, max_new_tokens=1).usage
        chosen = model.engine.selection(model.preprocessor(image), budget=vila_jax.Budget.parse(budget))
        assert promised == usage.visual_tokens_kept == len(chosen) == len(set(chosen.tolist())) == expected
        assert usage.text_tokens == 4  # `<s>` and three words


@pytest.mark.parametrize("budget", ["hired:1", "hired:1.0", "hired:100%,alpha=0.3", "random:1"])
def test_keeping_everything_is_no_budget_bit_for_bit(model, budget):
    full = model.logits(PROMPT, [TALL])
    np.testing.assert_array_equal(model.logits(PROMPT, [TALL], budget=budget), full)
    assert model.count_tokens((90, 41), budget) == model.count_tokens((90, 41), None)


def test_budget_of_the_model_is_the_default(model, written):
    small = vila_jax.from_pretrained(str(written.folder), dtype="float32", budget="hired:5")
    assert small.count_tokens((33, 71)) == 5
    assert small.count_tokens((33, 71), budget=None) == model.count_tokens((33, 71)) > 16
    assert small.generate(PROMPT, [WIDE], max_new_tokens=1).usage.visual_tokens_kept == 5


def test_length_is_met_and_said(sampled):
    assert len(sampled.token_ids) == sampled.usage.completion_tokens == 20
    assert sampled.finish_reason == "length"


def ending_with(model, *eos_ids: int) -> vila_jax.Model:
    """The same model, programs included, with other end tokens."""
    config = dataclasses.replace(model.checkpoint.config, eos_ids=eos_ids)
    checkpoint = dataclasses.replace(model.checkpoint, config=config)
    return vila_jax.Model(checkpoint, model.engine, model.form, model.preprocessor, None, model.style)


@pytest.mark.parametrize("index", [0, 1, 8, 11])
def test_end_token_ends_the_answer_and_is_returned(model, sampled, index):
    token = sampled.token_ids[index]
    first = sampled.token_ids.index(token)
    other = ending_with(model, 95, token)
    answer = other.generate(PROMPT, [WIDE], **SAMPLED)
    assert answer.token_ids == sampled.token_ids[: first + 1]
    assert answer.finish_reason == "stop"
    everything = other.generate(PROMPT, [WIDE], **SAMPLED, ignore_eos=True)
    assert everything.token_ids == sampled.token_ids
    assert everything.finish_reason == "length"


def test_a_row_that_ends_leaves_the_others_alone(model):
    full = model.generate(**BATCH, **SAMPLED, ignore_eos=True)
    token = next(t for t in full[1].token_ids[1:] if t not in full[0].token_ids)
    answers = ending_with(model, token).generate(**BATCH, **SAMPLED)
    assert answers[1].token_ids == full[1].token_ids[: full[1].token_ids.index(token) + 1]
    assert answers[0].token_ids == full[0].token_ids
    assert [answer.finish_reason for answer in answers[:2]] == ["length", "stop"]


def stop_strings(text: str) -> list[str]:
    """A word, a part of one, one that spans words."""
    words = text.split(" ")
    return [words[12], words[4][1:] + " " + words[5][:2], " ".join(words[7:10])]


@pytest.mark.parametrize("which", range(3))
def test_stop_string_ends_the_answer_with_the_token_that_completes_it(model, sampled, which):
    stop = stop_strings(sampled.text)[which]
    answer = model.generate(PROMPT, [WIDE], **SAMPLED, ignore_eos=True, stop=[stop, "nowhere"])
    complete = next(n for n in range(1, 21) if stop in model.tokenizer.decode(sampled.token_ids[:n]))
    assert answer.text == sampled.text[: sampled.text.find(stop)]
    assert answer.token_ids == sampled.token_ids[:complete]
    assert answer.finish_reason == "stop"


def test_stop_string_of_one_row_leaves_the_others_alone(model):
    full = model.generate(**BATCH, **SAMPLED, ignore_eos=True)
    stop = next(word for word in full[1].text.split(" ") if word not in full[0].text + full[2].text)
    answers = model.generate(**BATCH, **SAMPLED, ignore_eos=True, stop=[stop])
    assert [answer.text for answer in answers] == [full[0].text, full[1].text[: full[1].text.find(stop)], full[2].text]
    assert [answer.finish_reason for answer in answers] == ["length", "stop", "length"]


@pytest.mark.parametrize("stop", [(), ("w4", "9 w"), ("w",)])
def test_pieces_of_a_stream_join_to_the_text(model, sampled, stop):
    options = {**SAMPLED, "ignore_eos": True, "stop": stop}
    pieces = list(model.stream(PROMPT, [WIDE], **options))
    answer = model.generate(PROMPT, [WIDE], **options)
    assert "".join(pieces) == answer.text
    assert all(pieces)
    if not stop:
        assert answer.text == sampled.text
        assert len(pieces) == 4


def test_same_seed_same_tokens_other_seed_other_tokens(model):
    def sample(seed: int) -> tuple[int, ...]:
        options = {"max_new_tokens": 12, "temperature": 3.0, "ignore_eos": True}
        return model.generate(PROMPT, [WIDE], seed=seed, **options).token_ids

    seeds = [0, 1, 5, 2**32 + 5, 2**40, 2**63 - 1]
    assert len({sample(seed) for seed in seeds}) == len(seeds)
    assert all(sample(seed) == sample(seed) for seed in seeds)


def test_temperature_zero_takes_the_likeliest_token_whatever_the_seed(model):
    answer = model.generate(PROMPT, [WIDE], max_new_tokens=1, ignore_eos=True, seed=3, top_k=2, top_p=0.1)
    assert answer.token_ids == (np.argmax(model.logits(PROMPT, [WIDE])[-1]),)


def test_conversations(model):
    def asked(picture: dict) -> list[dict]:
        return [{"role": "user", "content": [{"type": "image", **picture}, {"type": "text", "text": "w6 w7"}]}]

    inside = model.generate(messages=asked({"image": WIDE}), max_new_tokens=5)
    beside = model.generate(messages=asked({}), images=[WIDE], max_new_tokens=5)
    batch = model.generate(messages=[asked({"image": WIDE}), asked({"image": TALL})], max_new_tokens=5)
    assert inside.token_ids == beside.token_ids == batch[0].token_ids
    assert inside.usage.visual_tokens_full == model.count_tokens((33, 71))
    assert "".join(model.stream(messages=asked({}), images=[WIDE], max_new_tokens=5)) == inside.text


def test_too_long_for_the_context_says_the_counts(model):
    visual = model.count_tokens((60, 60))
    message = rf"4 text tokens \+ {visual} visual tokens \+ 150 new tokens = {visual + 154}, but .* context is 200"
    with pytest.raises(ContextLengthError, match=message):
        model.generate(PROMPT, [SQUARE], max_new_tokens=150)
    with pytest.raises(ContextLengthError, match="prompt 1: 202 text tokens"):
        model.generate(["w5", "w5 " * 201], max_new_tokens=1)
    answer = model.generate(PROMPT, [SQUARE], max_new_tokens=196 - visual, ignore_eos=True)
    assert len(answer.token_ids) == 196 - visual


@pytest.mark.parametrize(("prompt", "images"), [("<image> <image>", 1), ("w5", 2), ("<image>", 0)])
def test_placeholders_and_pictures_must_match(model, prompt, images):
    expected = prompt.count("<image>")
    with pytest.raises(PromptError, match=f"{expected} image placeholders, but {images} images"):
        model.generate(prompt, [WIDE] * images)
    with pytest.raises(PromptError, match=f"{expected} image placeholders, but {images} images"):
        model.logits(prompt, [WIDE] * images)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": PROMPT, "images": [WIDE], "budget": "hired:9999"}, "9999 visual tokens"),
        ({"prompt": PROMPT, "images": [photo(28, 56)], "budget": "hired:70"}, "70 visual tokens.*3 tile.* only 48"),
        ({"prompt": PROMPT, "images": [WIDE], "budget": "hird:0.2"}, "Did you mean 'hired'"),
    ],
)
def test_budgets_that_cannot_be_met(model, request_, message):
    with pytest.raises(BudgetError, match=message):
        model.generate(**request_)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "either a prompt or messages"),
        ({"prompt": "w5", "messages": [{"role": "user", "content": "w5"}]}, "either a prompt or messages"),
        ({"prompt": []}, "no prompt"),
        ({"messages": []}, "no message"),
        ({"prompt": "<image>", "images": "photo.png"}, "a list of pictures"),
        ({"prompt": ["<image>", "w5"], "images": [WIDE, WIDE]}, "2 lists of pictures"),
        ({"prompt": ["<image>", "w5"], "images": [[WIDE]]}, "2 lists of pictures"),
        ({"prompt": "w5", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": ["w5", "w6"], "seed": [1]}, "1 seeds for 2 prompts"),
        ({"prompt": "w5", "stop": [""]}, "empty"),
        ({"prompt": "w5", "temperature": -1.0}, "temperature"),
    ],
)
def test_requests_that_make_no_sense(model, request_, message):
    with pytest.raises(VilaError, match=message):
        model.generate(**request_)


def test_stream_takes_one_prompt(model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for users
    with pytest.raises(PromptError, match="one prompt"):
        model.stream(["w5", "w6"])


def test_empty_prompt_is_refused_where_no_token_begins_a_text(model):
    with pytest.raises(PromptError, match="empty"):
        model.engine.planner.layout([Request([])], None, 1)


def test_a_model_that_a_budget_cannot_serve(tmp_path):
    full = write(tmp_path / "full", vision_feature_select_strategy="full").folder
    with pytest.raises(BudgetError, match="keeps the class token"):
        vila_jax.from_pretrained(full, budget="hired:0.2").generate("<image>", [WIDE])


def test_processor_files_of_another_model_are_refused(written, tmp_path):
    other = write(tmp_path, next_=True, image_grid_pinpoints=[[28, 56]])
    written.processor.save_pretrained(other.folder)
    with pytest.raises(ConfigError, match=r"cut along .* but the model expects \(\(28, 56\),\)"):
        vila_jax.from_pretrained(other.folder)


def photos(number: int) -> list:
    rng = np.random.default_rng(0)
    return [photo(*rng.integers(20, 120, 2), seed) for seed in range(number)]


@pytest.mark.parametrize("budget", ["hired:0.2", "hired:0.2,variant=code", "random:6"])
def test_fifty_photos_under_a_budget_compile_one_set_of_programs(model, count_compilations, budget):
    first, *rest = photos(50)
    options = {"budget": budget, "max_new_tokens": 3, "ignore_eos": True}
    model.generate(PROMPT, [first], **options)
    with count_compilations() as count:
        answers = [model.generate(PROMPT, [image], **options) for image in rest]
    assert count() == 0
    assert len({model.preprocessor.geometry(image.size[::-1]).grid for image in rest}) == 5
    assert len(set(ids(answers))) > 1


def test_fifty_photos_without_a_budget_compile_one_set_of_programs_per_length(model, count_compilations):
    options = {"max_new_tokens": 3, "ignore_eos": True}
    lengths = [model.count_tokens(image.size[::-1]) + 4 + 3 for image in photos(50)]
    for length in (min(lengths), max(lengths)):
        model.generate(PROMPT, [photos(50)[lengths.index(length)]], **options)
    assert min(lengths) <= 64 < max(lengths) <= 128  # the two buckets
    with count_compilations() as count:
        for image in photos(50):
            model.generate(PROMPT, [image], **options)
    assert count() == 0


def test_another_question_or_budget_does_not_compile_the_tower_again(written):
    compiled = []
    model = vila_jax.from_pretrained(written.folder, dtype="float32", on_compile=compiled.append)
    options = {"max_new_tokens": 2, "ignore_eos": True}
    first = model.generate(PROMPT, [WIDE], budget="hired:0.2", **options)
    assert compiled == ["vision tower", "visual tokens", "prefill", "decode"]
    assert first.timings.compile > 0
    compiled.clear()
    again = model.generate("w9 w8 <image>", [TALL], budget="hired:0.2", **options)
    assert compiled == []
    assert again.timings.compile == 0
    model.generate("w9 " * 70 + "<image>", [TALL], budget="hired:0.4", **options)
    assert compiled == ["visual tokens", "prefill", "decode"]


@pytest.mark.parametrize("axes", [{"tensor": 2, "data": 4}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_sharded_model_answers_as_on_one_device(model, written, axes):
    sharded = vila_jax.from_pretrained(written.folder, dtype="float32", mesh=make_mesh(axes))
    np.testing.assert_allclose(sharded.logits(PROMPT, [WIDE]), model.logits(PROMPT, [WIDE]), rtol=0, atol=1e-4)
    options = {"max_new_tokens": 20, "ignore_eos": True, "budget": "hired:0.3"}
    assert ids(sharded.generate(**BATCH, **options)) == ids(model.generate(**BATCH, **options))
    one = [each.generate(PROMPT, [WIDE], max_new_tokens=20, ignore_eos=True) for each in (sharded, model)]
    assert one[0].token_ids == one[1].token_ids


def test_cache_is_sharded_like_the_heads_that_fill_it(written, monkeypatch):
    sharded = vila_jax.from_pretrained(written.folder, dtype="float32", mesh=make_mesh({"tensor": 2, "data": 4}))
    seen = []
    decode = sharded.engine.phases.decode
    monkeypatch.setattr(sharded.engine.phases, "decode", lambda *args: seen.append(decode(*args)) or seen[-1])
    sharded.generate(PROMPT, [WIDE], max_new_tokens=20, ignore_eos=True)
    keys, values = seen[-1][0].cache[0]
    heads = sharded.config.vlm.decoder.num_kv_heads
    assert {part.data.shape[-3] for array in (keys, values) for part in array.addressable_shards} == {heads // 2}


def test_computation_takes_the_dtype_of_the_model(model, written):
    half = vila_jax.from_pretrained(written.folder, dtype="bfloat16")
    layout = half.engine.planner.layout([half.request(PROMPT, [WIDE], budget=None)], None, 1)
    assert half.engine.phases.visual_tokens(layout.tiles).table.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.logits(PROMPT, [WIDE]), model.logits(PROMPT, [WIDE]), atol=1.0)


def test_tiles_together_are_encoded_as_one_by_one(model, written, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # where all tiles go through the tower at once
    together = vila_jax.from_pretrained(written.folder, dtype="float32")
    for budget in (None, "hired:0.3"):
        expected = model.logits(PROMPT, [TALL], budget=budget)
        np.testing.assert_allclose(together.logits(PROMPT, [TALL], budget=budget), expected, rtol=0, atol=1e-5)
