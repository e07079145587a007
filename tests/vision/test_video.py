"""Frames of folders, animations and video files, against what was put into them."""

import io
import pathlib
import struct
import sys

import av
import numpy as np
import pytest
from PIL import Image

from vila_jax.errors import ConfigError, ImageError
from vila_jax.vision.video import open_frames

COUNT, RATE = 8, 4
SIZE = (64, 48)


def drawn(i: int) -> Image.Image:
    """Frame `i`: a gray that grows, and a white corner at the top left."""
    image = Image.new("RGB", SIZE, (25 * i, 25 * i, 25 * i))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    return image


def encoded(form: str, codec: str = "mpeg4", count: int = COUNT) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        container.start_encoding()  # writes the header even where no frame follows
        for i in range(count):
            container.mux(stream.encode(av.VideoFrame.from_image(drawn(i))))
        container.mux(stream.encode())
    return file.getvalue()


def animated(form: str, **options) -> bytes:
    file = io.BytesIO()
    first, *rest = (drawn(i) for i in range(COUNT))
    first.save(file, form, save_all=True, append_images=rest, **options)
    return file.getvalue()


def numbers(frames: list[Image.Image]) -> list[int]:
    """Which frame each picture is, by its gray."""
    assert all(frame.mode == "RGB" and frame.size == SIZE for frame in frames)
    return [round(float(np.asarray(frame)[24:, 32:].mean()) / 25) for frame in frames]


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return encoded("mp4")


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    for i in range(12):
        drawn(i % 10).save(tmp_path / f"frame{i}.png")  # natural order, not that of the alphabet
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_bytes(b"nor this")
    return tmp_path


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_frames_is_sampled_evenly(folder, kind):
    frames = kind([drawn(0), np.asarray(drawn(1)), folder / "frame2.png", str(folder / "frame3.png")])
    assert numbers(open_frames(frames, 4)) == numbers(open_frames(frames, 4, fps=1)) == [0, 1, 2, 3]
    assert numbers(open_frames(frames, 2)) == [0, 3]
    with pytest.raises(ImageError, match="list of frames is empty"):
        open_frames(kind(), 2)
    with pytest.raises(ImageError, match="more frames than the limit of 3"):
        open_frames(frames, 2, max_frames=3)
    with pytest.raises(ImageError, match="48 x 64 pixels"):
        open_frames(frames, 2, max_pixels=64 * 48 - 1)


# Sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 8, 11])
def test_frames_are_taken_evenly_as_by_the_reference(mp4, num_frames):
    expected = np.round(np.linspace(0, COUNT - 1, num_frames)).astype(int).tolist()
    assert numbers(open_frames(mp4, num_frames)) == expected
    assert numbers(open_frames(mp4, num_frames, fps=0)) == expected, "0 is how configs say no"


@pytest.mark.parametrize(
    "fps, num_frames, expected",
    [
        (1, 8, [0, 4]),
        (1, 1, [0]),
        (2.0, 8, [0, 2, 4, 6]),
        (4, 3, [0, 1, 2]),
        (3, 8, [0, 1, 2, 4, 5, 6]),
        (8, 4, [0, 0, 1, 1]),
    ],
)
def test_frames_are_taken_by_time(mp4, fps, num_frames, expected):
    assert numbers(open_frames(mp4, num_frames, fps)) == expected


def test_times_of_an_animation_may_differ():
    gif = animated("GIF", duration=[1000, 100, 100, 100, 100, 100, 500, 1000])
    assert numbers(open_frames(gif, 8, fps=2)) == [0, 0, 1, 6, 7]


# Sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form, codec", [("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4")]
)
def test_video_files(tmp_path, form, codec):
    path = tmp_path / "clip"  # the name does not matter
    path.write_bytes(encoded(form, codec))
    for source in (path, str(path)):
        frames = open_frames(source, 4)
        assert numbers(frames) == [0, 2, 5, 7]
        assert np.asarray(frames[0])[:12, :12].mean() > 240, "upright"


@pytest.mark.parametrize("form, options", [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_animated_pictures(form, options):
    assert numbers(open_frames(animated(form, **options), 4)) == [0, 2, 5, 7]


def test_picture_that_does_not_move_is_one_frame():
    file = io.BytesIO()
    drawn(3).save(file, "JPEG", quality=95)
    assert numbers(open_frames(file.getvalue(), 2)) == [3, 3]


def test_folder_in_natural_order(folder):
    assert numbers(open_frames(folder, 12)) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert numbers(open_frames(str(folder), 4, fps=1)) == [0, 4, 7, 1], "a folder has no times"


def test_film_of_a_phone_is_turned_upright(mp4):
    """A quarter clockwise, as the matrix of its track header asks (ISO/IEC 14496-12, 8.3.2)."""
    header = mp4.index(b"tkhd")
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    data = mp4[: header + 44] + matrix + mp4[header + 80 :]
    (frame,) = open_frames(data, 1)
    assert frame.size == SIZE[::-1]
    assert np.asarray(frame)[:12, -12:].mean() > 240


# Refusals ---------------------------------------------------------------------------------------------------------


def test_broken_and_empty_sources(tmp_path, mp4):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "playlist.m3u8").write_text("#EXTM3U\nhttp://example.com/secret\n")
    (tmp_path / "cut.mp4").write_bytes(mp4[: len(mp4) // 2])
    (tmp_path / "cut.gif").write_bytes(animated("GIF")[:200])
    (tmp_path / "header.mp4").write_bytes(mp4[:32])
    (tmp_path / "no-frame.avi").write_bytes(encoded("avi", count=0))
    for name, problem in [
        ("missing.mp4", "no such file"),
        ("empty.mp4", "empty"),
        ("nothing", "no file in this folder"),
        ("playlist.m3u8", "not an MP4"),
        ("cut.mp4", "no video stream is found"),
        ("cut.gif", "damaged or cut off"),
        ("header.mp4", "damaged or cut off"),
        ("no-frame.avi", "the video has no frame"),
    ]:
        with pytest.raises(ImageError, match=problem) as caught:
            open_frames(str(tmp_path / name), 4)
        assert str(tmp_path) in str(caught.value), "the message says where"
        assert caught.value.fix


def test_sound_is_no_video():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ImageError, match="no video stream is found"):
        open_frames(file.getvalue(), 4)


@pytest.mark.parametrize("url", ["http://example.com/a.mp4", "rtsp://camera", "file:///etc", "concat://a|b"])
def test_urls_are_refused(url):
    with pytest.raises(ImageError, match=r"not downloaded|file URLs"):
        open_frames(url, 4)


def test_limits(folder, mp4):
    gif = animated("GIF")
    for source in (mp4, gif):
        assert len(open_frames(source, 2, max_frames=COUNT, max_pixels=64 * 48)) == 2
        with pytest.raises(ImageError, match="more frames than the limit of 7"):
            open_frames(source, 2, max_frames=COUNT - 1)
        with pytest.raises(ImageError, match="48 x 64 pixels, more than the limit"):
            open_frames(source, 2, max_pixels=64 * 48 - 1)
        with pytest.raises(ImageError, match="longer than the limit"):
            open_frames(source, 2, max_bytes=len(source) - 1)
    with pytest.raises(ImageError, match="more frames than the limit of 11"):
        open_frames(folder, 2, max_frames=11)
    with pytest.raises(ImageError, match="more than the limit"):
        open_frames(folder, 2, max_pixels=64 * 48 - 1)


@pytest.mark.parametrize(
    "settings", [{"num_frames": 0}, {"num_frames": 4, "fps": -1}, {"num_frames": 4, "fps": float("nan")}]
)
def test_impossible_sampling(mp4, settings):
    with pytest.raises(ConfigError, match=r"num_frames|fps"):
        open_frames(mp4, **settings)


def test_missing_library_is_named(monkeypatch, mp4):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'vila-jax\[video\]'"):
        open_frames(mp4, 4)
    assert len(open_frames(animated("GIF"), 2)) == 2, "animations do without"
