"""Budgets inside the decoder, from prompt to answer.

The oracle runs the layers of transformers' own Llama one by one, takes tokens away between them by its eager attention,
and reads the whole sequence again for every token it generates, so that it has no cache that could be wrong.
"""

import numpy as np
import pytest
import torch

import vila_jax
from tests.infer.checkpoints import photo, write
from tests.infer.places import places_left
from vila_jax.budgets import Budget
from vila_jax.dist.mesh import make_mesh
from vila_jax.errors import BudgetError

DEPTH = 5
WIDE, TALL, SQUARE, NARROW = photo(33, 71), photo(90, 41), photo(60, 60), photo(23, 150)
ROWS = {
    "w10 <image> w11 <image> w12": [NARROW, SQUARE],
    "w20 w21 w22": [],
    "<image> w30 w31 w32 w33": [TALL],
}
BATCH = {"prompt": list(ROWS), "images": list(ROWS.values())}
ANSWER = {"max_new_tokens": 11, "ignore_eos": True}
SPARSE = ["sparse:0.2", "sparse:7,layer=0"]
SPECS = ["fastv:0.4", "fastv:9,layer=1,positions=renumbered", "pyramiddrop:0.2", "pyramiddrop:0.3,positions=original"]
BEHIND_ORIGINAL = [
    f"hired:0.5,positions=original+{step}"
    for step in ("fastv:0.4", "pyramiddrop:0.3", "pyramiddrop:0.3,positions=original", "sparse:0.3")
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    text = {"head_dim": 8, "max_position_embeddings": 200, "num_hidden_layers": DEPTH}
    return write(tmp_path_factory.mktemp("deep"), next_=True, image_grid_pinpoints=pinpoints, text_args=text)


@pytest.fixture(scope="module")
def model(written) -> vila_jax.Model:
    return vila_jax.from_pretrained(written.folder, dtype="float32")


def ids(answers) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


class Oracle:
    """A prompt under a budget, read by transformers' layers."""

    def __init__(self, model, written, spec, prompt, images):
        self.text, self.head = written.model.model.language_model, written.model.lm_head
        self.text.config._attn_implementation = "eager"
        tokens = written.processor(text=[prompt], images=images)["input_ids"][0]
        self.visual = np.array([token == model.config.image_token_id for token in tokens])
        self.embedded = torch.tensor(model.embeddings(prompt, images, budget=spec))
        self.places = torch.arange(len(tokens))
        *front, step = Budget.parse(spec).steps
        if front:  # whose tokens keep their original positions
            self.places = torch.tensor(places_left(written, model, prompt, images, str(front[0])))
            self.visual = self.visual[self.places]
        self.rule = step.decoder_method
        n = int(self.visual.sum())
        fraction = step.keep if isinstance(step.keep, float) else step.keep / n
        least = max(1, int(n * step.keep)) if isinstance(step.keep, float) else step.keep
        counts = [max(least, int(n * ratio)) for ratio in self.rule.ratios(fraction)]
        self.count = counts[-1]
        self.cuts = {} if step.method == "sparse" else dict(zip(self.rule.cuts(DEPTH), counts, strict=True))
        self.chosen: dict[int, list[int]] = {}

    def layer(self, i, x, positions, seen=None):
        """The result of a layer and its attention; `seen` is which key each query sees, by default those before it."""
        seen = torch.ones(len(x), len(x), dtype=torch.bool).tril() if seen is None else seen
        layer, mask = self.text.layers[i], torch.where(seen, 0.0, -1e9)[None, None]
        rotation = self.text.rotary_emb(x[None], positions[None])
        normed = layer.input_layernorm(x[None])
        _, attention = layer.self_attn(normed, position_embeddings=rotation, attention_mask=mask)
        out = layer(x[None], position_embeddings=rotation, attention_mask=mask)
        return (out[0] if out.ndim == 3 else out), attention[0].mean(0)

    @torch.no_grad()
    def read(self, generated: list[int]):
        """Logits of the tokens that are left, `generated` ones at the end; the first reading decides who is left."""
        x = torch.cat([self.embedded, self.text.embed_tokens(torch.tensor(generated, dtype=torch.long))])
        visual = np.concatenate([self.visual, np.zeros(len(generated), bool)])
        positions = torch.cat([self.places, self.places[-1] + 1 + torch.arange(len(generated))])
        attention = None
        for i in range(DEPTH):
            if i in self.cuts:
                if i not in self.chosen:
                    asked = self.layer(i, x, positions)[1] if self.rule.scores_ahead else attention
                    scores = asked[-1].numpy()
                    best = np.flatnonzero(visual)[np.argsort(-scores[visual], kind="stable")[: self.cuts[i]]]
                    self.chosen[i] = sorted([*np.flatnonzero(~visual).tolist(), *best.tolist()])
                left = self.chosen[i] + list(range(len(x) - len(generated), len(x)))
                x, visual, positions = x[left], visual[left], positions[left]
                if self.rule.positions == "renumbered":
                    positions = torch.arange(len(x))
            sparse = self.rule.name == "sparse" and i >= self.rule.layer
            seen = self.seen(self.layer(i, x, positions)[1].numpy(), visual) if sparse else None
            x, attention = self.layer(i, x, positions, seen)
        return self.head(self.text.norm(x)).numpy()

    def seen(self, attention, visual):
        """Text, oneself, and the best visual tokens: of the last token of the prompt, or of a generated one itself."""
        seen = np.tril(np.ones_like(attention, bool))
        for query in range(len(visual)):
            scores = attention[max(query, len(self.embedded) - 1)]
            dropped = np.flatnonzero(visual)[np.argsort(-scores[visual], kind="stable")[self.count :]]
            seen[query, dropped[dropped != query]] = False
        return torch.tensor(seen)


@pytest.mark.parametrize("spec", [*SPECS, *SPARSE, *BEHIND_ORIGINAL])
def test_answers_are_those_of_the_oracle(model, written, spec):
    prompt, images = next(iter(ROWS.items()))
    oracle = Oracle(model, written, spec, prompt, images)
    logits = oracle.read([])
    np.testing.assert_allclose(model.logits(prompt, images, budget=spec), logits, rtol=0, atol=2e-4)
    assert len(logits) == int((~oracle.visual).sum()) + min(oracle.cuts.values(), default=int(oracle.visual.sum()))
    generated: list[int] = []
    for _ in range(ANSWER["max_new_tokens"]):
        generated.append(int(oracle.read(generated)[-1].argmax()))
    assert list(model.generate(prompt, images, budget=spec, **ANSWER).token_ids) == generated


@pytest.mark.parametrize("spec", ["hired:0.4+fastv:0.5,layer=2", "pyramiddrop:0.2", "sparsevlm:0.2", "sparse:0.2"])
def test_rows_of_a_batch_answer_as_alone(model, spec):
    """Two pictures, none, one."""
    together = model.generate(**BATCH, budget=spec, **ANSWER)
    alone = [model.generate(*row, budget=spec, **ANSWER) for row in ROWS.items()]
    assert len(set(ids(together))) == len(ROWS)
    assert ids(together) == ids(alone)
    assert [answer.usage for answer in together] == [answer.usage for answer in alone]
    assert together[1].token_ids == model.generate("w20 w21 w22", **ANSWER).token_ids


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm", "sparse"])
def test_keeping_everything_is_no_budget_bit_for_bit(model, method):
    full = model.logits("w5 <image> w6", [TALL])
    np.testing.assert_array_equal(model.logits("w5 <image> w6", [TALL], budget=f"{method}:1"), full)
    np.testing.assert_array_equal(
        model.logits("w5 <image> w6", [TALL], budget=f"hired:0.3+{method}:1"),
        model.logits("w5 <image> w6", [TALL], budget="hired:0.3"),
    )


def layout(model, spec, prompt="w5 <image> w6 w7", images=(WIDE,), new_tokens=3):
    budget = model._budget(spec)
    request = model.request(prompt, list(images), budget=budget)
    return model.engine.planner.layout([request], budget, new_tokens)


def test_a_prompt_without_pictures_runs_the_programs_of_no_budget(model):
    planned, plain = (layout(model, spec, "w5 w6", ()) for spec in ("fastv:0.5", None))
    assert planned.schedule is planned.kept is None
    assert planned.cache_lengths == plain.cache_lengths


def test_caches_behind_the_cut_are_shorter_in_memory(model, monkeypatch):
    prompt = "<image> <image> w6"
    seen = []
    prefill = model.engine.phases.prefill
    monkeypatch.setattr(model.engine.phases, "prefill", lambda *args: seen.append(prefill(*args)) or seen[-1])
    for spec in (None, "fastv:0.1", "pyramiddrop:0.1", "sparse:0.1"):
        model.generate(prompt, [SQUARE, SQUARE], budget=spec, max_new_tokens=1)
    lengths = [[keys.shape[-2] for keys, _ in progress.cache] for progress in seen]
    assert lengths[0] == [192] * DEPTH
    assert lengths[1] == [192] * 2 + [64] * 3
    assert lengths[2] == [192, 128, 128, 64, 64]
    assert lengths[3] == lengths[0]


def test_fifty_photos_compile_one_set_of_programs_per_bucket(model, count_compilations):
    """A bucket is the padded lengths in front of the cut and behind it; a budget before the decoder leaves only one."""
    rng = np.random.default_rng(0)
    photos = [photo(*rng.integers(20, 120, 2), seed) for seed in range(50)]
    options = {"max_new_tokens": 3, "ignore_eos": True}
    for spec in ("fastv:0.4", "random:30+sparsevlm:0.3"):
        buckets = {}
        for image in photos:
            planned = layout(model, spec, images=[image])
            buckets.setdefault((planned.prompts.token_ids.shape, planned.schedule, planned.cache_lengths), image)
        assert len(buckets) == (1 if "random" in spec else 4)
        for image in buckets.values():
            model.generate("w5 <image> w6 w7", [image], budget=spec, **options)
        with count_compilations() as count:
            for image in photos:
                model.generate("w5 <image> w6 w7", [image], budget=spec, **options)
        assert count() == 0


def test_layer_that_does_not_exist_is_refused_before_anything_runs(model, written):
    for spec, message in [
        ("fastv:0.5,layer=5", "layer 5 .*5 layers.*from 1 to 4"),
        ("fastv:0.5,layer=0", "layer 0 .*from 1 to 4"),
        ("hired:0.5+pyramiddrop:0.2,layer3=0.95", "layers 1, 3, 5 .*5 layers"),
        ("pyramiddrop:0.5,ratio1=0.2", "ratio1 >= ratio2 >= KEEP"),
        ("sparse:0.5,layer=5", "layer 5 .*5 layers.*from 0 to 4"),
        ("fastv:0.5,layer=two", "whole number"),
        ("fastv:0.5,positions=new", "original"),
        ("fastv:0.5+hired:0.5", "hired:0.5\\+fastv:0.5"),
        ("fastv:0.5+pyramiddrop:0.5", "both work inside the decoder"),
    ]:
        with pytest.raises(BudgetError, match=message):
            model.generate("w5", budget=spec)
        with pytest.raises(BudgetError, match=message):
            vila_jax.from_pretrained(written.folder, budget=spec)
    with pytest.raises(BudgetError, match="asks for 999 visual tokens, but prompt 2 has only"):
        model.generate(["w5", "w6", "<image>"], [[], [], [WIDE]], budget="fastv:999")


def test_sharded_model_answers_as_on_one_device(model, written):
    sharded = vila_jax.from_pretrained(written.folder, dtype="float32", mesh=make_mesh({"tensor": 2, "data": 4}))
    options = {**ANSWER, "budget": "hired:0.5+pyramiddrop:0.25"}
    assert ids(sharded.generate(**BATCH, **options)) == ids(model.generate(**BATCH, **options))


@pytest.mark.parametrize("name", ["vila15_llama_siglip", "nvila_qwen2_dynamic_s2"])
def test_towers_without_class_token_and_merging_projectors(golden, name, count_compilations):
    """Dropping in front of the second of two layers; the logits are those of the tokens that are left."""
    model = vila_jax.from_pretrained(golden / "vila" / "checkpoints" / name)

    def asked(image):
        return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Why?"}]}]

    wide, tall = asked(WIDE), asked(TALL)
    full = model.generate(messages=wide, max_new_tokens=1).usage
    for spec in ("fastv:0.5,layer=1", "fastv:0.5,layer=1,positions=renumbered"):
        left = model.logits(messages=wide, budget=spec)
        assert len(left) == full.text_tokens + full.visual_tokens_full // 2
    options = {"budget": "fastv:0.5,layer=1", "max_new_tokens": 4, "ignore_eos": True}
    together = model.generate(messages=[wide, tall], **options)
    assert ids(together) == [model.generate(messages=one, **options).token_ids for one in (wide, tall)]
    with count_compilations() as count:
        model.generate(messages=asked(photo(34, 70)), **options)
    assert count() == 0


@pytest.mark.parametrize("picture", [SQUARE, TALL])
def test_what_is_left_is_what_the_last_token_attends_to(model, written, picture):
    prompt, budget = "w10 <image> w11 w12", Budget.parse("fastv:0.4,layer=1")
    text = written.model.model.language_model
    text.config._attn_implementation = "eager"
    with torch.no_grad():
        embedded = torch.tensor(model.embeddings(prompt, [picture]))[None]
        attention = text(inputs_embeds=embedded, output_attentions=True).attentions[0][0].mean(0)[-1].numpy()
    [image] = model.preprocessor.pictures([picture])
    shown = np.concatenate(image.geometry.segments(-1))  # patches in token order, -1 for newlines
    scores = attention[2 : 2 + len(shown)]  # behind BOS and w10
    best = np.argsort(-scores, kind="stable")[: int(len(shown) * 0.4)]
    left = model.engine.left(model.request(prompt, [picture], budget=budget), budget=budget)
    assert set(left.indices) == {i for i in shown[best] if i >= 0}
    assert np.flatnonzero(left.clusters >= 0).tolist() == sorted(left.indices)
    both = Budget.parse("hired:0.5+fastv:0.4,layer=1")
    given = model.engine.chosen(image, budget=both)
    left = model.engine.left(model.request(prompt, [picture], budget=both), budget=both)
    assert len(left.indices) == int(len(given.indices) * 0.4) and set(left.indices) < set(given.indices)
