"""A drawn data set in LLaVA's form, with planted faults of every kind, from its files to packed batches."""

import collections
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

import vila_jax
from train import recipe
from train.data.labels import IGNORED
from train.data.packing import RowShape
from train.data.readers import READERS
from train.data.records import Caption, Conversation, Document
from train.data.samples import Layout
from train.data.store import read_shards, write_shards
from train.data.stream import MIN_SEEN, estimate_steps, open_batches, samples
from train.data.visual import Visual
from vila_jax.errors import DataError

SHAPE = RowShape(tokens=160, tiles=4, bins=4)


@pytest.fixture(scope="module")
def layout(golden):
    model = vila_jax.from_pretrained(golden / "vila" / "checkpoints" / "vila15_llama_siglip", dtype="float32")
    planner = model.engine.planner
    return Layout(model.form, model.style, model.preprocessor, SHAPE, Visual(planner)), planner.tokens_per_tile


def picture(color, size=(40, 30)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), color, np.uint8)).save(file, "PNG")
    return file.getvalue()


def conversation(number, pictures=1, question="What?", answer="yes"):
    messages = ({"role": "user", "content": "<image>" * pictures + question}, {"role": "assistant", "content": answer})
    return Conversation(f"s{number}", messages, tuple(picture(number % 256) for _ in range(pictures)))


def laid_out(records, layout, **options):
    import grain

    iterator = iter(samples(grain.MapDataset.source(records), layout, **options))
    return list(iterator), iterator


def test_faults_are_skipped_and_counted(layout):
    layout, _ = layout
    good = [conversation(i, i % 3) for i in range(12)]
    faults = {
        "corrupt picture": [Caption("a", "b", (picture(1)[:60],)), Caption("b", "b", (b"",))],
        "missing picture": [Caption("c", "b", ("none.png",))],
        "empty conversation": [
            Caption("d", " ", (picture(1),)),
            Conversation("e", conversation(0, 0).messages[:1]),
        ],
        "wrong number of pictures": [Conversation("f", conversation(0, 2).messages, (picture(1),))],
        "nothing to learn": [conversation(1, 1, "What is this? " * 60)],
        "too many tiles": [conversation(1, 5)],
        "damaged record": [b"\x01"],
        "a video": [conversation(1, 0, "<vila/video> What?")],
    }
    planted = list(itertools.chain(*faults.values()))
    mixed = [x for pair in itertools.zip_longest(good, planted) for x in pair if x is not None]
    laid, iterator = laid_out(mixed, layout)
    assert len(laid) == len(good) and iterator.seen == len(mixed)
    assert iterator.bad == {reason: len(own) for reason, own in faults.items()}


def test_too_many_faults_end_the_run(layout):
    layout, _ = layout
    records = [conversation(i, 0) if i % 10 else Caption("a", "b", (b"",)) for i in range(MIN_SEEN + 20)]
    assert len(laid_out(records, layout, max_bad_share=0.11)[0]) == 198
    with pytest.raises(DataError, match="corrupt picture"):
        laid_out(records, layout, max_bad_share=0.05)


def test_counts_are_resumed(layout):
    import grain

    layout, _ = layout
    records = [conversation(i, 0) if i % 3 else Caption("a", "b", (b"",)) for i in range(30)]
    stream = samples(grain.MapDataset.source(records), layout)
    iterator = iter(stream)
    for _ in range(7):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = [x["token_ids"].tolist() for x in iterator]
    again = iter(stream)
    again.set_state(state)
    assert [x["token_ids"].tolist() for x in again] == rest
    assert (again.seen, again.bad) == (iterator.seen, iterator.bad) == (30, {"corrupt picture": 10})


def test_every_kind_of_record(layout):
    layout, per_tile = layout
    document = Document("d", ("a b", "c"), (1, 0), (picture(10), picture(200)))
    for record, tiles in (document, 2), (Caption("c", "a cat", (picture(3),)), 1), (conversation(1, 0), 0):
        laid = layout(record)
        assert len(laid.pixels) == tiles and np.sum(laid.source >= 0) == tiles * per_tile
        assert np.all(laid.labels[laid.source >= 0] == IGNORED)
    # the picture of sentence 0 comes first
    means = layout(document).pixels.mean(axis=(1, 2, 3))
    assert means[0] > means[1]


def test_a_picture_that_is_cut_goes_with_its_tiles(layout):
    layout, per_tile = layout
    sentences = ("word " * 30, "more " * 30, "end")
    record = Document("d", sentences, (0, 1, 2), (picture(1), picture(2), picture(3)))
    laid = layout(record)
    assert len(laid.token_ids) == SHAPE.tokens and laid.source.max() < len(laid.pixels) * per_tile
    assert laid.fits(SHAPE)


@pytest.mark.slow
def test_2000_drawn_samples_with_planted_faults(tmp_path, layout):
    """As a user would: the JSON is prepared, mixed, packed; what was planted is reported exactly."""
    layout, _ = layout
    rng = np.random.default_rng(0)
    data, planted = [], collections.Counter()
    for i in range(32):
        (tmp_path / f"{i}.png").write_bytes(picture(8 * i))
    (tmp_path / "cut.png").write_bytes(picture(1)[:50])
    (tmp_path / "empty.png").write_bytes(b"")
    kinds = ["missing picture", "corrupt picture", "corrupt picture", "empty conversation", "wrong number of pictures"]
    names = {"missing picture": ["none.png"], "corrupt picture": ["cut.png", "empty.png"]}
    for i in range(2000):
        sample = {"id": i, "image": f"{i % 32}.png", "conversations": []}
        sample["conversations"] = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "yes"}]
        if i % 4 == 0:
            sample = {"id": i, "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "so"}]}
        elif rng.random() < 0.04:
            kind = kinds[rng.integers(len(kinds))]
            planted[kind] += 1
            sample["image"] = names[kind][rng.integers(len(names[kind]))] if kind in names else sample["image"]
            if kind == "empty conversation":
                sample["conversations"] = []
            if kind == "wrong number of pictures":
                sample["conversations"][0]["value"] += "<image>"
        data.append(sample)
    (tmp_path / "data.json").write_text(json.dumps(data))
    report = write_shards(READERS["llava"](tmp_path / "data.json"), tmp_path / "set", source="drawn")
    assert report.bad == planted and report.records == 2000 - planted.total() and planted.total() > 40
    assert len(read_shards(tmp_path / "set")) == report.records
    seen = steps = 0
    data = recipe.Data("set", threads=2)
    stage = recipe.Stage("x", {"projector": 1e-3}, recipe.Rows(2, SHAPE.tokens, SHAPE.tiles, bins=SHAPE.bins), data)
    sources = {"set": read_shards(tmp_path / "set")}
    made = open_batches(stage, [layout], sources)
    while made.seen < report.records:
        budget, batch = next(made)
        assert budget == 0 and batch["token_ids"].shape == (2, SHAPE.tokens)
        assert batch["pixels"].shape[:2] == (2, SHAPE.tiles)
        seen += int(np.sum((batch["positions"] == 0) & (np.arange(SHAPE.tokens) < batch["used"][:, :1])))
        steps += 1
    made.close()
    assert not made.bad and abs(seen - report.records) <= 40  # what the bins hold is not out yet
    assert abs(estimate_steps(stage, [layout], sources) - steps) <= 0.05 * steps
