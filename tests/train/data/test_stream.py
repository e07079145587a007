"""Samples of every kind laid out; those that cannot be trained on are skipped and counted."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

import vila_jax
from train.data.labels import IGNORED
from train.data.packing import RowShape
from train.data.records import Caption, Conversation, Document
from train.data.samples import Layout
from train.data.stream import MIN_SEEN, samples
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
