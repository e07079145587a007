"""Dense labels, checked against the boxes of the things and a pixel-by-pixel count."""

import numpy as np
import pytest

from vila_jax.scenes import COLOR_LABELS, CONTENT_LABELS, NUM_COLORS, NUM_CONTENTS, draw_scene, patch_labels, presence

BASE = (0, 0, 96, 96)
TILES = [(x, y, x + 48, y + 48) for y in (0, 48) for x in (0, 48)]


@pytest.fixture(scope="module")
def scenes():
    drawn = [draw_scene(seed, split="train") for seed in range(80)]
    return [scene for scene in drawn if scene.image.shape[:2] == (96, 96)]


def _overlap(box, x0, y0, x1, y1) -> float:
    """Fraction of the patch that the box covers."""
    width, height = min(box[2], x1) - max(box[0], x0), min(box[3], y1) - max(box[1], y0)
    return max(width, 0) * max(height, 0) / ((x1 - x0) * (y1 - y0))


@pytest.mark.parametrize("crop", [BASE, *TILES])
def test_labels_agree_with_the_boxes(scenes, crop):
    scale = (crop[2] - crop[0]) / 48
    for scene in scenes:
        colors, contents = patch_labels(scene, crop)
        assert colors.shape == contents.shape == (36,)
        for p, (color, content) in enumerate(zip(colors, contents, strict=True)):
            x0, y0 = crop[0] + p % 6 * 8 * scale, crop[1] + p // 6 * 8 * scale
            covers = [_overlap(thing.box, x0, y0, x0 + 8 * scale, y0 + 8 * scale) for thing in scene.objects]
            if color == 0:
                assert content == 0
                solid = [c for c, t in zip(covers, scene.objects, strict=True) if t.kind in ("card", "plate")]
                assert max(solid, default=0) < 0.31  # these fill their boxes; two digits of a plate may share the patch
                continue
            names = COLOR_LABELS[color], CONTENT_LABELS[content]
            fitting = [
                cover
                for cover, thing in zip(covers, scene.objects, strict=True)
                if thing.color == names[0]
                and names[1] in ([thing.kind] if scale > 1 else [thing.kind, *thing.content.split()])
            ]
            assert max(fitting, default=0) >= 0.15


def test_everything_is_found_whole_in_the_base_and_read_in_the_tiles(scenes):
    for scene in scenes:
        present = presence(*patch_labels(scene, BASE)).reshape(NUM_COLORS, NUM_CONTENTS)
        seen = {(COLOR_LABELS[i], CONTENT_LABELS[j]) for i, j in np.argwhere(present)}
        assert seen == {(thing.color, thing.kind) for thing in scene.objects}
        read = sum(presence(*patch_labels(scene, tile)).astype(int) for tile in TILES) > 0
        for thing in scene.objects:
            for word in thing.content.split():
                code = COLOR_LABELS.index(thing.color) * NUM_CONTENTS + CONTENT_LABELS.index(word)
                assert read[code], thing


def test_digits_of_a_plate_are_labelled_in_reading_order():
    plates = 0
    for seed in range(60):
        scene = draw_scene(seed, split="train")
        for plate in (thing for thing in scene.objects if thing.kind == "plate"):
            x0, y0, x1, y1 = plate.box
            row = scene.labels[(y0 + y1) // 2, x0:x1] % NUM_CONTENTS
            runs = [CONTENT_LABELS[code] for i, code in enumerate(row) if i == 0 or row[i - 1] != code]
            digits = plate.content.split()
            expected = [
                d for i, d in enumerate(digits) if i == 0 or digits[i - 1] != d
            ]  # equal neighbours melt together
            assert runs == expected
            plates += 1
    assert plates > 10


def test_oblong_base_is_squashed_in_one_direction():
    oblong = [s for s in (draw_scene(seed, split="test") for seed in range(60)) if s.image.shape[0] != s.image.shape[1]]
    assert {scene.image.shape for scene in oblong} == {(48, 96, 3), (96, 48, 3)}
    for scene in oblong:
        height, width, _ = scene.image.shape
        present = presence(*patch_labels(scene, (0, 0, width, height))).reshape(NUM_COLORS, NUM_CONTENTS)
        seen = {(COLOR_LABELS[i], CONTENT_LABELS[j]) for i, j in np.argwhere(present)}
        assert seen == {(thing.color, thing.kind) for thing in scene.objects}


def test_label_tables():
    assert len(COLOR_LABELS) == NUM_COLORS and len(CONTENT_LABELS) == NUM_CONTENTS
    assert len(set(CONTENT_LABELS)) == NUM_CONTENTS and COLOR_LABELS[0] == CONTENT_LABELS[0] == "background"
