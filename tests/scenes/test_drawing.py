"""Pictures: reproducible, without overlaps, with handwriting that the two splits never share."""

import itertools
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from vila_jax.errors import VilaError
from vila_jax.scenes import EASY, MEDIUM, READING, SINGLE, Difficulty, Scene, blank, draw_scene, handwriting, sprites
from vila_jax.scenes.world import COLORS, SHAPES, WORDS


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {split: [draw_scene(seed, split=split) for seed in range(200)] for split in ("train", "test")}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_scene_is_a_function_of_its_seed(scenes, split):
    for seed in (0, 199, 3):  # out of order, after other scenes were drawn
        again, first = draw_scene(seed, split=split), scenes[split][seed]
        np.testing.assert_array_equal(again.image, first.image)
        np.testing.assert_array_equal(again.labels, first.labels)
        assert again.objects == first.objects and again.questions == first.questions


def test_seeds_and_splits_give_different_pictures(scenes):
    pictures = {scene.image.tobytes() for split in scenes.values() for scene in split}
    assert len(pictures) == 400


def test_splits_share_no_handwriting(scenes):
    shown = {split: {i for scene in scenes[split] for t in scene.objects for i in t.scans} for split in scenes}
    assert min(map(len, shown.values())) > 100 and not shown["train"] & shown["test"]
    digits = load_digits()
    allowed = {split: [set(handwriting.scan_indices(split, d)) for d in range(10)] for split in scenes}
    for d in range(10):
        train, test = allowed["train"][d], allowed["test"][d]
        assert not train & test and train | test == set(np.flatnonzero(digits.target == d))
        assert 0.15 < len(test) / (len(train) + len(test)) < 0.25
    pictures = {split: {digits.images[i].tobytes() for of in allowed[split] for i in of} for split in scenes}
    assert not pictures["train"] & pictures["test"]  # nor does any scan occur twice under two indices


def test_content_is_what_the_scans_show(scenes):
    target = load_digits().target
    for scene in itertools.chain(*scenes.values()):
        for thing in scene.objects:
            if thing.scans:
                assert thing.content == " ".join(str(target[i]) for i in thing.scans)


def test_things_stay_inside_the_picture_and_apart(scenes):
    for scene in itertools.chain(*scenes.values()):
        height, width, _ = scene.image.shape
        assert (height, width) in ((96, 96), (48, 96), (96, 48))
        for x0, y0, x1, y1 in (thing.box for thing in scene.objects):
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        for a, b in itertools.combinations([thing.box for thing in scene.objects], 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_no_tile_border_cuts_what_can_be_read(scenes):
    for scene in itertools.chain(*scenes.values()):
        for x0, y0, x1, y1 in (thing.box for thing in scene.objects if not thing.is_shape):
            assert x0 // 48 == (x1 - 1) // 48 and y0 // 48 == (y1 - 1) // 48


def _nearest_color(rgb: np.ndarray) -> str:
    return min(COLORS, key=lambda name: float(np.abs(rgb - np.array(COLORS[name])).sum()))


def test_pixels_have_the_color_that_is_told(scenes):
    for scene in scenes["test"]:
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            if (
                thing.is_shape
            ):  # the most saturated choice of pixels would hide mistakes: take what lies on the drawn mask
                pixels = scene.image[y0:y1, x0:x1][sprites.shape_mask(thing.kind, x1 - x0) == 1]
            else:
                pixels = scene.image[y0 : y0 + 2, x0:x1].reshape(-1, 3)
            assert _nearest_color(np.median(pixels, axis=0)) == thing.color


def test_ink_is_the_scan_at_its_own_size():
    scans = load_digits()
    for scan in range(0, 1797, 97):
        sprite = handwriting.ink(scan, 0)
        assert sprite.shape == (10, 10) and sprite.min() >= 0 and sprite.max() <= 1
        original = scans.images[scan] / 16
        assert np.corrcoef(sprite[1:9, 1:9].ravel(), original.ravel())[0, 1] > 0.8


def test_sprites_differ_and_fill_their_size():
    for size in (18, 27):
        masks = [sprites.shape_mask(kind, size) for kind in SHAPES]
        for mask in masks:
            assert mask.max() == 1 and mask.any(axis=0).mean() > 0.9 and mask.any(axis=1).mean() > 0.9
        for a, b in itertools.combinations(masks, 2):
            assert np.abs(a - b).mean() > 0.1
    with pytest.raises(ValueError, match="no such shape: blob"):
        sprites.shape_mask("blob", 18)


def test_words_fit_their_sign_uncut_and_differ():
    padded = []
    for word in WORDS:
        mask = sprites.word_mask(word)
        roomy = Image.new("L", (64, 32))
        ImageDraw.Draw(roomy).text((16, 8), word, fill=255, font=ImageFont.load_default(sprites.WORD_PX))
        assert mask.shape[1] <= 22  # of the 26 of the paper
        assert mask.sum() * 255 == pytest.approx(np.asarray(roomy).sum(), rel=1e-6)
        padded.append(np.pad(mask, ((0, 0), (0, 22 - mask.shape[1]))))
    for a, b in itertools.combinations(padded, 2):
        assert np.abs(a - b).sum() > 5


def test_difficulty_bounds_the_crowd():
    for difficulty in (
        EASY,
        MEDIUM,
        Difficulty(shapes=(9, 9), fine=(2, 2), oblong=0.5),
        Difficulty((0, 0), (0, 0), 0.0),
    ):
        for seed in range(40):
            scene = draw_scene(seed, split="train", difficulty=difficulty)
            shapes = sum(thing.is_shape for thing in scene.objects)
            fine = len(scene.objects) - shapes
            assert difficulty.fine[0] <= fine <= difficulty.fine[1]
            cells = 9 if scene.image.shape[0] == scene.image.shape[1] else 3
            assert min(difficulty.shapes[0], cells - fine) <= shapes <= difficulty.shapes[1]
            assert difficulty.oblong or cells == 9


def test_blank_keeps_everything_but_the_picture(scenes):
    scene = scenes["test"][0]
    control = blank(scene)
    assert control.questions == scene.questions and control.image.shape == scene.image.shape
    assert len(np.unique(control.image)) == 1 and len(np.unique(scene.image)) > 50


def test_halving_loses_the_words_but_not_the_shapes():
    """Contrast between neighbouring letters is what reading needs: it mostly goes, that of a shape's edge stays."""

    def kept(mask: np.ndarray) -> float:
        ink = Image.fromarray(np.pad(mask, 4))
        half = np.asarray(ink.resize((ink.width // 2, ink.height // 2), Image.Resampling.BICUBIC))
        return float(half.var() / np.asarray(ink).var())

    assert max(kept(sprites.word_mask(word)) for word in WORDS) < 0.62
    assert min(kept(sprites.shape_mask(kind, 18)) for kind in SHAPES) > 0.8


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    handwriting._scans.cache_clear()
    try:
        with pytest.raises(VilaError, match=r"pip install 'vila-jax\[demo\]'"):
            handwriting._scans()
    finally:
        handwriting._scans.cache_clear()


def test_scenes_to_read_hold_several_things_of_a_kind_in_colors_of_their_own():
    scenes = [draw_scene(seed, difficulty=READING) for seed in range(100)]
    repeated = 0
    for scene in scenes:
        fine = [thing for thing in scene.objects if not thing.is_shape]
        assert 2 <= len(fine) <= (4 if scene.image.shape == (96, 96, 3) else 2)
        assert len({thing.color for thing in fine} - {t.color for t in scene.objects if t.is_shape}) == len(fine)
        repeated += any([thing.kind for thing in fine].count(kind) > 1 for kind in ("plate", "sign"))
    assert repeated > 30


def test_a_single_thing_fills_one_tile():
    scenes = [draw_scene(seed, difficulty=SINGLE) for seed in range(60)]
    for scene in scenes:
        [thing] = scene.objects
        x0, y0, x1, y1 = thing.box
        assert scene.image.shape == (48, 48, 3) and min(x0, y0) >= 0 and max(x1, y1) <= 48
        assert thing.place == "center" and all(16 <= middle < 32 for middle in ((x0 + x1) / 2, (y0 + y1) / 2))
    assert len({scene.objects[0].kind for scene in scenes}) == len(SHAPES) + 3
