"""The reader of Flickr8k: both published forms, and files with flaws."""

import collections
import re

import numpy as np
import pytest
from PIL import Image

from eval.studies.flickr8k import Corpus, Problems, list_photos, load, split
from eval.studies.scene_captions import describe, write_scenes
from eval.studies.words import vocabulary
from vila_jax.errors import VilaError
from vila_jax.scenes import draw_scene
from vila_jax.scenes.world import COLORS


def photo(path, color=(200, 30, 30), size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def original(tmp_path):
    """As on the authors' server: two folders, a line for each caption, one photo named that does not exist."""
    for name in ("1_a.jpg", "2_b.jpg"):
        photo(tmp_path / "Flickr8k_Dataset" / "Flicker8k_Dataset" / name)
    (tmp_path / "Flickr8k_text").mkdir()
    (tmp_path / "Flickr8k_text" / "Flickr8k.token.txt").write_text(
        "1_a.jpg#0\tA child in a pink dress .\n1_a.jpg#1\tA girl # 1 goes in , they say .\n"
        "2_b.jpg#0\tA dog .\n2_b.jpg.1#0\tA man in street racer armor .\n"
        "no caption here\n2_b.jpg#x\tno number\n2_b.jpg#4\t\n../2_b.jpg#0\tout of the folder\n\n"
    )
    return tmp_path


def test_the_original_form(original):
    found = list_photos(original)
    assert {path.name: captions for path, captions in found.photos.items()} == {
        "1_a.jpg": ("A child in a pink dress .", "A girl # 1 goes in , they say ."),
        "2_b.jpg": ("A dog .",),
    }
    assert found.problems == Problems(malformed_lines=4, missing_photos=1)
    assert str(found.problems) == "4 malformed lines, 1 missing photos" and str(Problems()) == "nothing"


def test_the_csv_form(tmp_path):
    photo(tmp_path / "Images" / "1_a.jpg")
    (tmp_path / "captions.txt").write_text(
        'image,caption\n1_a.jpg,A child .\n1_a.jpg,"A dog , and ""another"" ."\n'
        "1_a.jpg,two,commas\n1_a.jpg\n1_a.jpg,\nsub/1_a.jpg,elsewhere\n3_c.jpg,Not there .\n"
    )
    found = list_photos(tmp_path)
    assert list(found.photos.values()) == [("A child .", 'A dog , and "another" .')]
    assert found.problems == Problems(malformed_lines=4, missing_photos=1)


def test_damaged_photos_are_left_out_and_counted(original):
    (original / "Flickr8k_Dataset" / "Flicker8k_Dataset" / "1_a.jpg").write_bytes(b"\xff\xd8\xff but no photo")
    corpus, problems = load(list_photos(original), 16)
    assert corpus.photos.shape == (1, 16, 16, 3) and corpus.captions == ("A dog .",)
    assert corpus.owners.tolist() == [0]
    assert problems == Problems(4, 1, damaged_photos=1)


def test_what_cannot_be_read_at_all_is_explained(tmp_path, original):
    with pytest.raises(VilaError, match=r"no file of captions.*Flickr8k\.token\.txt, .*captions\.txt"):
        list_photos(original / "Flickr8k_Dataset")
    for path in (original / "Flickr8k_Dataset" / "Flicker8k_Dataset").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(VilaError, match=r"no photo can be read \(left out: .*2 damaged photos"):
        load(list_photos(original), 16)
    for path in (original / "Flickr8k_Dataset" / "Flicker8k_Dataset").iterdir():
        path.unlink()
    with pytest.raises(VilaError, match=r"token\.txt: no photo with a caption"):
        list_photos(original)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "captions.txt").write_text("image,caption\n")
    with pytest.raises(VilaError, match=r"no folder of photos.*Images"):
        list_photos(tmp_path / "only")


@pytest.mark.parametrize("form", ["token", "csv"])
def test_scenes_come_back_through_the_same_reader(tmp_path, form):
    write_scenes(tmp_path, 4, form)
    corpus, problems = load(list_photos(tmp_path), 112)
    assert problems == Problems() and corpus.photos.shape == (4, 112, 112, 3)
    assert corpus.owners.tolist() == [i for i in range(4) for _ in range(5)]
    for i in range(4):
        scene = draw_scene(i)
        resized = np.asarray(Image.fromarray(scene.image).resize((112, 112), Image.Resampling.BICUBIC), float)
        assert np.abs(resized - corpus.photos[i]).mean() < 8  # JPEG with subsampled colours
        things = collections.Counter((thing.color, thing.kind) for thing in scene.objects)
        for caption in corpus.captions[5 * i : 5 * i + 5]:
            assert caption[0].isupper() and caption.endswith(" .")
            named = collections.Counter(re.findall(rf"({'|'.join(COLORS)}) (\w+)", caption))
            assert named <= things and named.total() == min(3, len(scene.objects))


def test_a_scene_without_things_has_a_caption():
    assert describe((), np.random.default_rng(0)) == "Nothing but dark ground ."


def test_the_split_shares_no_photo_and_keeps_captions_with_theirs():
    photos = np.arange(12, dtype=np.uint8).repeat(3).reshape(12, 1, 1, 3)
    owners = np.array([i for i in range(12) for _ in range(1 + i % 3)])
    corpus = Corpus(photos, tuple(f"photo {i}" for i in owners), owners)
    for sizes, expected in {(6, 2): (6, 2), (6000, 2000): (9, 3)}.items():
        parts = split(corpus, *sizes)
        numbers = [set(part.photos[:, 0, 0, 0].tolist()) for part in parts]
        assert tuple(map(len, numbers)) == expected and not numbers[0] & numbers[1]
        for part in parts:
            shown = [f"photo {part.photos[owner, 0, 0, 0]}" for owner in part.owners]
            assert list(part.captions) == shown and set(part.owners.tolist()) == set(range(len(part.photos)))
        assert parts[0].captions == split(corpus, *sizes)[0].captions


def test_words():
    known = vocabulary(["A dog , a cat .", "The dog's cat ; a dog"])
    assert known.numbers == {"a": 2, "dog": 3, "cat": 4} and known.size == 5
    rows = known.encode(["A dog barks , a cat", "...", "dog"], 4)
    assert rows.tolist() == [[2, 3, 1, 2], [1, 0, 0, 0], [3, 0, 0, 0]]
