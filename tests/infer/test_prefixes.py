"""Turns of a conversation read what is new, and are answered as if they had read everything."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.infer.checkpoints import photo
from vila_jax.dist.mesh import make_mesh
from vila_jax.errors import ConfigError, ImageError, VilaError
from vila_jax.infer.layout import Planner
from vila_jax.infer.prefill import embed, lengthened, read
from vila_jax.infer.prefixes import Passage, PrefixCache, Visual
from vila_jax.infer.resume import keeps_prefixes, lay_out_rest, passage_of
from vila_jax.model import from_pretrained
from vila_jax.nn.attention import attention
from vila_jax.vision.geometry import TileGeometry

VILA = pathlib.Path(__file__).parents[1] / "golden" / "vila" / "checkpoints"
WIDE, TALL, SQUARE = photo(33, 71), photo(90, 41), photo(60, 60)
OPTIONS = {"max_new_tokens": 4, "ignore_eos": True}
ROOM = 2**24
LONG = " ".join(f"w{i}" for i in range(4, 84))
TURNS = [(LONG[:150], [WIDE]), ("w7", []), ("w8 w9", [photo(23, 150)])]  # the first is longer than a bucket
SAMPLED = OPTIONS | {"temperature": 2.0, "seed": 11}  # greedy answers of random weights may hold no text at all


def converse(model, chat, turns, **options):
    """The answers of all turns, each compared with that of the whole conversation as one prompt."""
    answers = []
    for text, images in turns:
        shown = [{"type": "image", "image": image} for image in images]
        said = [*chat.messages, {"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
        answers.append(chat.ask(text, images))
        assert chat.messages == [*said, {"role": "assistant", "content": answers[-1].text}]
        whole = model.generate(messages=said, **options)
        assert answers[-1].token_ids == whole.token_ids
        usage = dataclasses.replace(answers[-1].usage, cached_tokens=0, cached_images=0)
        assert usage == whole.usage
    return answers


@pytest.mark.parametrize(
    ("spec", "turns"),
    [
        (None, TURNS),
        ("hired:0.5,variant=code,swap=false", TURNS[::2]),  # leaves slots unused
        ("hired:0.5,variant=code,swap=false,positions=original", TURNS[::2]),
        ("downsample:0.5+random:6", TURNS[::2]),
    ],
)
def test_turns_are_answered_as_the_whole_conversation(model, spec, turns):
    options = SAMPLED | {"budget": spec}
    answers = converse(model, model.chat(**options), turns, **options)
    cached = [answer.usage.cached_tokens for answer in answers]
    assert cached[0] == 0 and all(tokens > 10 for tokens in cached[1:])
    assert [answer.usage.cached_images for answer in answers] == [0, 1, 1][: len(turns)]


@pytest.mark.parametrize("name", ["nvila_lite_qwen2_dynamic", "nvila_qwen2_dynamic_s2"])
def test_pictures_of_several_placeholders(name):
    model = from_pretrained(VILA / name)
    answers = converse(
        model, model.chat(**SAMPLED), [("What is this? " * 9, [photo(60, 150)]), ("Why?", [])], **SAMPLED
    )
    assert answers[1].usage.cached_tokens > 10


def test_a_sharded_model_keeps_rows_too(written):
    mesh = make_mesh({"tensor": 2, "data": 4})
    sharded = from_pretrained(written.folder, dtype="float32", mesh=mesh)
    answers = converse(sharded, sharded.chat(**SAMPLED), TURNS[:2], **SAMPLED)
    assert answers[1].usage.cached_tokens > 10


def rest_of(model, prefixes, request):
    """Logits of what is new of a request, behind what is kept of it, and how many entries are kept."""
    planner, programs = model.engine.planner, model.engine.phases.programs
    passage, _ = passage_of(planner, request, None, 1)
    found = prefixes.find(passage)
    layout = lay_out_rest(planner, request, None, 1, found)
    network = nnx.merge(programs.graphdef, programs.state)
    cache = lengthened(programs.graphdef, programs.state, found.cache, lengths=layout.cache_lengths)
    visual = model.engine.phases.visual_tokens(layout.tiles)
    prompts = jax.tree.map(jnp.asarray, layout.prompts)
    tokens = embed(network, prompts, visual, jnp.asarray(found.before.position))
    left = read(network.decoder, tokens, None, None, cache, jnp.asarray(found.before.entries)).tokens
    return np.asarray(network.decoder.logits(left.x))[0, : int(left.lengths[0])], int(found.before.entries[0])


@pytest.mark.parametrize("images", [[WIDE], [WIDE, SQUARE]], ids=len)
def test_logits_of_what_is_new_are_those_of_the_whole(model, images):
    prefixes, prompt = PrefixCache(ROOM), "w5 <image> w6 w7 w8"
    for _ in model.answers(prompt, [WIDE], prefixes=prefixes, **OPTIONS):
        pass
    longer = prompt + " w9 w11" + " <image> w12" * (len(images) - 1)
    logits, known = rest_of(model, prefixes, model.request(longer, images))
    expected = model.logits(longer, images)
    assert known == len(expected) - len(logits) > 50
    np.testing.assert_allclose(logits, expected[known:], rtol=0, atol=1e-4)


def run(model, prompt, prefixes, images=(), **options):
    answers = model.answers(prompt, list(images), prefixes=prefixes, **{**OPTIONS, **options})
    for _ in answers:
        pass
    [answer] = answers.results()
    whole = model.generate(prompt, list(images), **{**OPTIONS, **options})
    assert answer.token_ids == whole.token_ids
    return answer


def test_what_branches_off_keeps_both(model):
    prefixes = PrefixCache(ROOM)
    run(model, LONG + " w90", prefixes)
    branch = run(model, LONG + " w91", prefixes)
    assert branch.usage.cached_tokens == 81 and len(prefixes) == 2
    further = run(model, LONG + " w90", prefixes)  # all but its last token are known
    assert further.usage.cached_tokens == 81 and len(prefixes) == 2


def test_what_goes_on_takes_the_place_of_what_it_goes_on_from(model):
    prefixes = PrefixCache(ROOM)
    first = run(model, LONG, prefixes)
    words = model.tokenizer.decode(first.token_ids)
    second = run(model, f"{LONG} {words} w33", prefixes)
    assert second.usage.cached_tokens >= 81
    assert len(prefixes) == 1 or second.usage.cached_tokens < 84  # an answer may hold what no text can say


def test_other_pictures_and_budgets_share_what_is_in_front_of_them(model):
    prefixes = PrefixCache(ROOM)
    run(model, f"{LONG} <image> w5", prefixes, [WIDE])
    for image, budget in [(TALL, None), (WIDE, "hired:0.3")]:
        answer = run(model, f"{LONG} <image> w5", prefixes, [image], budget=budget)
        assert answer.usage.cached_tokens == 81 and answer.usage.cached_images == 0
    assert run(model, f"{LONG} <image> w5 w6", prefixes, [WIDE]).usage.cached_images == 1


def test_the_least_recently_used_row_leaves(model):
    one = PrefixCache(ROOM)
    run(model, LONG, one)
    prefixes = PrefixCache(2 * one.nbytes)
    for first in ("w90", "w91", "w92"):
        run(model, f"{first} {LONG}", prefixes)
    assert len(prefixes) == 2 and prefixes.nbytes <= 2 * one.nbytes
    assert run(model, f"w92 {LONG} w5", prefixes).usage.cached_tokens > 80
    assert run(model, f"w90 {LONG} w5", prefixes).usage.cached_tokens <= 1
    prefixes.clear()
    assert len(prefixes) == prefixes.nbytes == 0
    too_small = PrefixCache(one.nbytes - 1)
    run(model, LONG, too_small)
    assert len(too_small) == 0


def test_where_it_cannot_be_exact_nothing_is_kept(model):
    prefixes = PrefixCache(ROOM)
    for _ in range(2):
        answer = run(model, "w5 <image> w6", prefixes, [WIDE], budget="fastv:0.5,layer=1")
        assert answer.usage.cached_tokens == 0
    batch = model.answers([LONG, LONG], prefixes=prefixes, **OPTIONS)
    assert len(list(batch)) > 0 and len(prefixes) == 0
    decoder = model.config.vlm.decoder
    stretched = dataclasses.replace(decoder, rope=dataclasses.replace(decoder.rope, scaling="dynamic"))
    vlm = dataclasses.replace(model.config.vlm, decoder=stretched)
    planner = Planner(dataclasses.replace(model.config, vlm=vlm), "float32", 0)
    assert keeps_prefixes(model.engine.planner, None) and not keeps_prefixes(planner, None)


def test_an_answer_that_is_given_up_counts_as_far_as_it_was_heard(model):
    options = SAMPLED | {"max_new_tokens": 30}
    chat = model.chat(**options)
    pieces = chat.stream(LONG[:150], [WIDE])
    heard = next(pieces) + next(pieces)
    pieces.close()
    assert chat.messages[-1] == {"role": "assistant", "content": chat.last.text}
    assert chat.last.text.startswith(heard) and len(chat.last.token_ids) < 30
    assert converse(model, chat, [("w7", [])], **options)[0].usage.cached_tokens > 10


def test_a_turn_that_fails_leaves_no_trace(model):
    chat = model.chat("w20", **SAMPLED)
    for wrong in ({"text": LONG * 5}, {"text": "w5", "media": ["/nowhere.png"]}, {"text": "w5", "max_new_tokens": 0}):
        with pytest.raises((VilaError, ImageError)):
            chat.ask(**wrong)
        assert chat.messages == [{"role": "system", "content": "w20"}]
    converse(model, chat, TURNS[:1], **SAMPLED)


def test_turns_of_the_same_buckets_compile_nothing(model, count_compilations):
    prefixes = PrefixCache(ROOM)
    for word in ("w90", "w91"):
        run(model, f"{LONG} {word}", prefixes)
    with count_compilations() as count:
        for word in ("w92", "w93", "w94 w95"):
            assert run(model, f"{LONG} {word}", prefixes).usage.cached_tokens == 81
    assert count() == 0


def test_rows_of_another_model_are_refused(model):
    prefixes = PrefixCache(ROOM)
    prefixes.belong_to(model.engine.planner)
    prefixes.belong_to(model.engine.planner)
    other = from_pretrained(VILA / "nvila_lite_qwen2_dynamic")
    with pytest.raises(ConfigError, match="another model"):
        other.answers("What?", prefixes=prefixes)


def test_media_are_read_whole():
    names = (1, *(Visual(((b"a", TileGeometry(4, (60, 60))),), None, number) for number in range(3)), 2, 3)
    passage = Passage(names, (1,) * 6)
    prefixes = PrefixCache(ROOM)
    cut = Passage(names[:3], (1,) * 3)
    prefixes.keep(cut, ((jnp.zeros((1, 8, 2)), jnp.zeros((1, 8, 2))),))
    assert prefixes.find(passage).names == names[:1]
    assert prefixes.find(Passage((5, 6), (1, 1))) is None


def test_a_negative_size_is_refused():
    with pytest.raises(ConfigError, match="-5 bytes"):
        PrefixCache(-5)


@pytest.mark.parametrize("window", [None, 9])
def test_attention_behind_a_cache_in_blocks_is_the_same(window):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((2, 150, 4, 8)), jnp.float32)
    k, v = (jnp.asarray(rng.standard_normal((2, 2, 200, 8)), jnp.float32) for _ in range(2))
    offset = jnp.asarray([0, 37])
    blocks = attention(q, k, v, causal=True, offset=offset, window=window)
    one = [attention(q[:, t : t + 1], k, v, causal=True, offset=offset + t, window=window) for t in range(q.shape[1])]
    np.testing.assert_allclose(blocks, jnp.concatenate(one, axis=1), rtol=0, atol=1e-5)
