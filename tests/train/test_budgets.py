"""Budgets and several scales in training: packed rows against the road of inference, one sample after another."""

import functools
import json
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx

import vila_jax
from tests.hf.test_add_scorer import scorer_for
from tests.infer.checkpoints import photo, write
from tests.train.data.forms import png
from train.data.labels import IGNORED
from train.data.packing import Axis, pack
from train.data.records import Caption, Document
from train.data.samples import make_layouts
from train.data.store import open_picture
from train.data.stream import open_batches
from train.data.visual import NEWLINE
from train.objective import answer_sums, encode_rows, make_objectives, table_of_row
from train.recipe import Compute, Data, Rows, Stage
from train.update import Rules, initial_state, update
from train.weights import Structure, split
from vila_jax.budgets import METHODS, TokenMethod
from vila_jax.encoder import EncodedPrompt
from vila_jax.errors import BudgetError
from vila_jax.hf.add_scorer import add_scorer
from vila_jax.hf.checkpoint import open_checkpoint
from vila_jax.hf.load import load_state
from vila_jax.infer.prefill import embed
from vila_jax.infer.vision import encode_tiles, visual_tokens
from vila_jax.nn.params import dotted

OPTIONS = {"cdpruner": ",relevance=none", "hiprune": ",object_layer=1"}  # of a small model
CHOOSING = [f"{name}:0.4{OPTIONS.get(name, '')}" for name, method in METHODS.items() if issubclass(method, TokenMethod)]


NEEDS_A_CLASS_TOKEN = {"learned"}  # or a scorer


@pytest.fixture(scope="module")
def open_model(golden, tmp_path_factory):
    """Tiny models by name, each loaded once."""
    return functools.lru_cache(lambda name: _open(name, golden, tmp_path_factory.mktemp(name)))


def _open(name, golden, folder):
    if name == "next":  # LLaVA-NeXT with a class token, a newline and a random scorer
        pinpoints, long = [[28, 56], [56, 28], [56, 56]], {"max_position_embeddings": 400}
        written = write(folder / "plain", next_=True, image_grid_pinpoints=pinpoints, text_args=long)
        checkpoint = open_checkpoint(written.folder)
        add_scorer(checkpoint, scorer_for(checkpoint), folder / "next")
        return vila_jax.from_pretrained(folder / "next", dtype="float32")
    if name == "s2":
        return vila_jax.from_pretrained(_with_s2(golden, folder / "s2"), dtype="float32")
    return vila_jax.from_pretrained(golden / "vila" / "checkpoints" / name, dtype="float32")


def _with_s2(golden, folder):
    """A VILA1.5 that sees two scales."""
    shutil.copytree(golden / "vila" / "checkpoints" / "vila15_llama_siglip", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"s2": True, "s2_scales": "56,112", "s2_max_split_size": 56, "mm_hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    rng, merged, hidden = np.random.default_rng(0), 4 * 64, 64
    shapes = {"layers.1.weight": (merged,), "layers.1.bias": (merged,), "layers.2.weight": (hidden, merged)}
    shapes |= {"layers.2.bias": (hidden,), "layers.4.weight": (hidden, hidden), "layers.4.bias": (hidden,)}
    weights = {key: rng.standard_normal(shape, np.float32) * 0.1 for key, shape in shapes.items()}
    safetensors.numpy.save_file(weights, folder / "mm_projector" / "model.safetensors")
    return folder


def layouts_of(model, *budgets, rows=1, tokens=256, tiles=24):
    stage = Stage(
        "test",
        {"projector": 1e-2, "decoder": 1e-2},
        Rows(rows, tokens, tiles, bins=2),
        Data("set", threads=1, prefetch=1),
        compute=Compute("float32", chunk=64),
        budgets=budgets,
    )
    return stage, make_layouts(stage, model.config, model.form, model.style, model.preprocessor)


def packed(layout, laid):
    """All samples in one row, as a batch of one."""
    source = grain.MapDataset.source([one.features() for one in laid]).to_iter_dataset()
    visual = layout.visual
    unit = Axis.PICTURES if visual.by_picture else Axis.TILES
    [row] = pack(source, layout.shape, visual.tokens_per_unit, unit=unit, axes=layout.axes)
    return {name: jnp.asarray(value)[None] for name, value in row.items()}


RECORDS = [
    Caption("a", "w5 w6 w7 w8", (png(photo(90, 40, 1)),)),
    Document("b", ("w30 w31", "w32 w33"), (0, 1), (png(photo(60, 90, 2)), png(photo(50, 50, 3)))),
    Document("c", ("w10 w11 w12",), (), ()),
    Caption("d", "w20 w21", (png(photo(40, 100, 4)),)),
]


def directly(model, layout, record, state, graphdef):
    """Loss of one sample by the road of inference; its number of targets."""
    budget, planner = layout.visual.budget, model.engine.planner
    opened = [open_picture(picture, record.id) for picture in layout._pictures(record)]
    pictures = model.preprocessor.pictures(opened, layout.visual.limit)
    segments = [planner.segments(picture.geometry, budget) for picture in pictures]
    ids, _ = layout._tokens(record, segments)
    request = model.encoder.spliced(EncodedPrompt(ids.tolist(), pictures))
    planned = planner.layout([request], budget, 0)
    laid = layout(record)
    text = laid.labels[laid.source == -1]  # of the tokens of text, in order; visual ones are not learned

    def loss(state):
        model, visual = nnx.merge(graphdef, state), None
        if (tiles := planned.tiles) is not None:
            spec = tiles.spec
            options = {"dtype": "float32", "wanted": spec.wanted, "reduction": spec.reduction}
            pixels, shown, *rest = jax.tree.map(jnp.asarray, (tiles.pixels, tiles.shown, tiles.scales, tiles.pictures))
            encoded = encode_tiles(graphdef, state, pixels, shown, **options)
            visual = visual_tokens(graphdef, state, encoded, *rest, None, spec=spec)
        tokens = embed(model, jax.tree.map(jnp.asarray, planned.prompts), visual)
        hidden, _ = model.decoder(tokens.x, tokens.positions)
        log_p = jax.nn.log_softmax(model.decoder.logits(hidden[0]), axis=-1)
        place = jnp.arange(log_p.shape[0], dtype=jnp.int32)
        is_text = (tokens.source[0] < 0) & (place < tokens.lengths[0])
        labels = jnp.where(is_text, jnp.asarray(text)[jnp.cumsum(is_text) - 1], IGNORED)[1:]
        picked = jnp.take_along_axis(log_p[:-1], jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(labels >= 0, picked, 0.0))

    return jax.jit(jax.value_and_grad(loss))(state), int(np.sum(laid.labels[1:] != IGNORED))


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("next", "full"),
        ("next", "prumerge:0.4"),
        ("next", "tome:0.5+divprune:0.6"),
        ("next", "tower_norm:0.5"),
        ("next", "downsample:0.7"),
        ("nvila_lite_qwen2_dynamic", "hired:0.4"),
        ("nvila_qwen2_dynamic_s2", "full"),
        ("nvila_qwen2_dynamic_s2", "divprune:0.4"),
        ("s2", "full"),
        ("s2", "visionzip:0.5"),
    ],
)
def test_packed_rows_are_the_samples_one_by_one(open_model, name, budget):
    model = open_model(name)
    _, [layout] = layouts_of(model, budget)
    graphdef, state = load_state(model.checkpoint, dtype=jnp.float32)
    records = RECORDS[:3] if budget in ("prumerge:0.4", "full") else RECORDS[3:]
    batch = packed(layout, [layout(record) for record in records])
    assert ("first_tile" in batch) == layout.visual.by_picture

    def loss(state):
        sums = answer_sums(nnx.merge(graphdef, state), batch, layout.visual.spec, chunk=64)
        return sums.loss, sums.targets

    (together, targets), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    alone = [directly(model, layout, record, state, graphdef) for record in records]
    assert int(targets) == sum(count for _, count in alone) > 0
    np.testing.assert_allclose(together, sum(loss for (loss, _), _ in alone), rtol=1e-5)
    summed = jax.tree.map(lambda *leaves: sum(leaves), *(grads for (_, grads), _ in alone))
    theirs = leaves_of(summed)
    scales = {path: float(jnp.max(jnp.abs(grad))) for path, grad in theirs.items()}
    noise = 1e-6 * max(scales.values())  # biases of keys have a gradient of zero, but for rounding
    for path, ours in leaves_of(grads).items():
        np.testing.assert_allclose(ours, theirs[path], rtol=1e-4, atol=2e-5 * scales[path] + noise, err_msg=path)


@pytest.mark.parametrize("name", ["next", "nvila_lite_qwen2_dynamic", "s2"])
def test_keeping_everything_is_no_budget(open_model, name):
    """The same program and the same rows, and so the same bits."""
    _, [plain, *others] = layouts_of(open_model(name), "full", "hired:1.0", "random:100%", "prumerge:1")
    for other in others:
        assert (other.visual.spec, other.axes) == (plain.visual.spec, plain.axes)
        ours, theirs = other(RECORDS[1]).features(), plain(RECORDS[1]).features()
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs) and set(ours) == set(theirs)


@pytest.mark.parametrize("budget", CHOOSING)
def test_every_method_has_finite_gradients(open_model, budget):
    """Also where slots of pictures are padding, and features of tiles are all zero."""
    model = open_model("next")
    _, [layout] = layouts_of(model, budget, tiles=8)
    graphdef, state = load_state(model.checkpoint, dtype=jnp.float32)
    batch, spec = packed(layout, [layout(RECORDS[0])]), layout.visual.spec
    shapes = jax.eval_shape(lambda: encode_rows(nnx.merge(graphdef, state), batch, spec))
    rng, real = np.random.default_rng(0), int(batch["used"][0, 1])
    encoded = jax.tree.map(lambda x: rng.random(x.shape[1:], np.float32), shapes)
    encoded = jax.tree.map(lambda x: jnp.asarray(np.where(np.arange(len(x)) < real, x.T, 0).T), encoded)
    row = {name: value[0] for name, value in batch.items()}

    @jax.jit
    def gradients(state, encoded):
        def total(state, encoded):
            visual = table_of_row(nnx.merge(graphdef, state), encoded, row, spec)
            return jnp.sum(jnp.where(visual.valid[:, None], visual.table, 0.0) ** 2), jnp.sum(visual.valid)

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(state, encoded)

    (_, kept), (of_weights, of_features) = gradients(state, encoded)
    assert 0 < int(kept) <= np.sum(batch["source"] >= 0)
    assert all(np.all(np.isfinite(grad)) for grad in jax.tree.leaves((of_weights, of_features)))
    assert np.any(of_features.features[:real]) and not np.any(of_features.features[real:])
    reached = {name.split(".")[0] for name, grad in leaves_of(of_weights).items() if np.any(grad)}
    assert reached == {"projector"} | ({"scorer"} if budget.startswith("learned") else set())


def leaves_of(state):
    return {dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def test_the_gate_of_the_scorer_changes_no_bit(open_model):
    """Tokens that the scorer chooses are projected as they are."""
    model = open_model("next")
    _, [layout] = layouts_of(model, "learned:0.3")
    graphdef, state = load_state(model.checkpoint, dtype=jnp.float32)
    network, spec = nnx.merge(graphdef, state), layout.visual.spec
    batch = packed(layout, [layout(RECORDS[0])])
    encoded = jax.tree.map(lambda x: x[0], encode_rows(network, batch, spec))
    ours = table_of_row(network, encoded, {name: value[0] for name, value in batch.items()}, spec)
    tiles = model.engine.planner.tiles(
        model.preprocessor.pictures([open_picture(RECORDS[0].pictures[0], "a")]), layout.visual.budget
    )
    theirs = visual_tokens(graphdef, state, encoded, None, tiles.pictures, None, spec=tiles.spec)
    kept = int(np.sum(theirs.valid))
    np.testing.assert_array_equal(ours.table[:kept], theirs.table[:kept])


def test_what_cannot_be_trained_under_is_refused(open_model):
    with pytest.raises(BudgetError, match="packed row") as caught:
        layouts_of(open_model("next"), "hired:0.5+fastv:0.5,layer=1")
    assert "hired" in caught.value.fix
    with pytest.raises(BudgetError, match="token scorer"):
        layouts_of(open_model("s2"), "learned:0.5")
    with pytest.raises(BudgetError, match="windows"):
        layouts_of(open_model("s2"), "tome:0.5")


@pytest.mark.parametrize("name", ["next", "nvila_lite_qwen2_dynamic", "nvila_qwen2_dynamic_s2", "s2"])
def test_a_sample_without_pictures_has_the_same_arrays(open_model, name):
    """Whichever comes first decides the shapes of a row."""
    able = [spec for spec in CHOOSING if name == "next" or not NEEDS_A_CLASS_TOKEN & {spec.split(":")[0]}]
    for layout in layouts_of(open_model(name), "full", *able)[1]:
        shown, text = (layout(RECORDS[i]).features() for i in (0, 2))
        assert set(shown) == set(text) == set(layout.axes)
        for key in shown:
            assert (shown[key].dtype, shown[key].shape[1:]) == (text[key].dtype, text[key].shape[1:]), (layout, key)


def test_newlines_are_left_out_under_a_budget(open_model):
    _, [plain, thin] = layouts_of(open_model("next"), "full", "uniform:0.5")
    assert np.sum(plain(RECORDS[0]).source == NEWLINE) > 0 == np.sum(thin(RECORDS[0]).source == NEWLINE)


def test_thirty_steps_under_drawn_budgets_compile_once_each(open_model, count_compilations):
    """Two kinds of picture, each with a caption of its own, are learned for every budget."""
    model = open_model("next")
    stage, layouts = layouts_of(model, "full", "hired:0.4", "random:0.3", rows=2, tokens=96, tiles=5)
    records = [Caption(f"{i}", ("w5 w6", "w70 w71")[i % 2], (png(photo(30, 30, i % 2)),)) for i in range(40)]
    graphdef, state = load_state(model.checkpoint, dtype=jnp.float32)
    structure, weights = Structure.of(nnx.merge(graphdef, state))
    trained, frozen = split(weights, stage.learning_rate)
    optimizer, rules = optax.adam(1e-2), Rules()
    steps = [
        jax.jit(functools.partial(update, objective=objective, optimizer=optimizer, rules=rules))
        for objective in make_objectives(structure, stage, [layout.visual.spec for layout in layouts])
    ]
    now, losses = initial_state(trained, optimizer, rules), {}
    batches = open_batches(stage, layouts, {"set": grain.MapDataset.source(records)})
    now = jax.block_until_ready(now)
    with count_compilations() as count:
        for _ in range(30):
            budget, batch = next(batches)
            now, metrics = steps[budget](now, frozen, {name: value[None] for name, value in batch.items()})
            losses.setdefault(budget, []).append(float(metrics["loss"]))
    batches.close()
    assert count() == len(layouts) == len(losses)
    assert all(own[-1] < 0.3 * own[0] for own in losses.values() if len(own) > 8), losses
