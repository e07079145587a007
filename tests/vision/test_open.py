"""Pictures of every kind and in every state, against Pillow, numpy and the file formats themselves."""

import base64
import io
import pathlib
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from vila_jax.errors import ConfigError, ImageError
from vila_jax.vision.open import MAX_PIXELS, open_image

RAMP = np.stack([np.tile(np.arange(0, 240, 10, dtype=np.uint8), (11, 1)) + shift for shift in (0, 7, 15)], axis=2)
"""RGB [11, 24, 3], no two columns alike."""
RED = (200, 10, 30)


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(size: tuple[int, int], depth: int, color: int, body: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by the letter of its specification, for what Pillow cannot write. `size` is (height, width)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size[1], size[0], depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def rows(values: np.ndarray, dtype: str) -> bytes:
    """PNG scan lines: filter type 0 before each."""
    return b"".join(b"\0" + row.astype(dtype).tobytes() for row in values)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


# Sources ----------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_picture(tmp_path):
    data = encode(Image.fromarray(RAMP))
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = [path, str(path), data, bytearray(data), memoryview(data), uri, RAMP, Image.fromarray(RAMP)]
    sources += [uri.replace("image/png", ""), "DATA" + uri[4:], uri.replace("+", "%2B").replace("=", "%3D") + "\n"]
    sources.append("data:image/png;base64," + base64.encodebytes(data).decode().replace("\n", "\r\n"))  # wrapped lines
    for source in sources:
        np.testing.assert_array_equal(pixels(open_image(source)), RAMP)


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "WEBP", "JPEG", "MPO"])
def test_formats_decode_as_pillow_does(photos, form):
    data = encode(photos["china"].resize((120, 80)), form)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(pixels(open_image(data)), np.asarray(expected))


def test_picture_of_the_caller_is_left_alone():
    image = Image.fromarray(RAMP)
    opened = open_image(image)
    opened.paste(RED, (0, 0, 5, 5))
    np.testing.assert_array_equal(np.asarray(image), RAMP)


@pytest.mark.parametrize(
    "uri", ["data:image/png;base64,!!!", "data:image/png;base64,QUJ", "data:image/png;base64", "data:image/png,abc"]
)
def test_bad_data_uri(uri):
    with pytest.raises(ImageError, match=r"data URI: .* base64"):
        open_image(uri)


@pytest.mark.parametrize(
    "url", ["http://example.com/a.png", "HTTPS://example.com/a.png", " ftp://x/y", "http://gs://x", "hf://a/b/c.png"]
)
def test_urls_are_refused(url):
    with pytest.raises(ImageError, match=r"not downloaded .* Download it first"):
        open_image(url)


def test_file_url_is_refused():
    with pytest.raises(ImageError, match="Pass the path without"):
        open_image("file:///etc/hostname")


def test_broken_files(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.html").write_text("<html>not found</html>")
    for name, problem in [
        ("missing.png", "no such file"),
        ("page.html/a.png", "no such file"),
        ("empty.png", "empty"),
        ("", "folder"),
        ("page.html", "not a JPEG, PNG, WebP, GIF or BMP"),
        ("nul\0byte", "cannot be read"),
    ]:
        with pytest.raises(ImageError, match=problem) as caught:
            open_image(str(tmp_path / name))
        assert str(tmp_path) in str(caught.value), "the message says where"
        assert caught.value.fix


def test_base64_without_its_prefix_is_a_path_that_cannot_be_read():
    with pytest.raises(ImageError, match="prefix data:image/png;base64,") as caught:
        open_image(base64.b64encode(bytes(5000)).decode())
    assert len(str(caught.value)) < 400, "the picture must not be in the message"


@pytest.mark.parametrize("source", [None, 7, [RAMP], {"path": "x"}])
def test_other_objects_are_refused(source):
    with pytest.raises(ImageError, match=f"a {type(source).__name__} is not a picture"):
        open_image(source)


@pytest.mark.parametrize("data", [b"", b"II*\0" + bytes(60), b"%PDF-1.7", b"RIFF\0\0\0\0WAVE", bytes(100)])
def test_bytes_that_are_no_accepted_format(data):
    with pytest.raises(ImageError, match=r"image bytes: (the file is empty|this is not a JPEG)"):
        open_image(data)


# Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_file(photos, form, kept):
    data = encode(photos["astronaut"].resize((200, 200)), form)
    with pytest.raises(ImageError, match="damaged or cut off"):
        open_image(data[: int(len(data) * kept)])


def test_lazily_opened_truncated_picture(photos):
    data = encode(photos["astronaut"], "JPEG")
    with pytest.raises(ImageError, match=r"PIL image: .* damaged"):
        open_image(Image.open(io.BytesIO(data[: len(data) // 2])))


FORMS = {form: encode(Image.fromarray(RAMP), form) for form in ["PNG", "BMP", "GIF", "WEBP", "JPEG"]}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(form=st.sampled_from(sorted(FORMS)), changes=st.dictionaries(st.integers(0, 2000), st.integers(0, 255)))
def test_damage_never_raises_anything_else(form, changes):
    data = bytearray(FORMS[form])
    for place, value in changes.items():
        data[place % len(data)] = value
    try:
        assert open_image(bytes(data), max_pixels=10**6).mode == "RGB"
    except ImageError as error:
        assert "0x" not in str(error), "no address of an object"


# Size limits ------------------------------------------------------------------------------------------------------


def bombs() -> dict[str, bytes]:
    """Small files that declare 50000 x 50000 pixels (WebP: its largest, 16384 x 16384)."""
    side = struct.pack("<H", 50_000)
    gif = b"GIF89a" + side * 2 + b"\0\0\0" + b",\0\0\0\0" + side * 2 + b"\0\2\1\0\0;"
    gif_frame = b"GIF89a\1\0\1\0\0\0\0" + b",\0\0\0\0" + side * 2 + b"\0\2\1\0\0;"
    gif_frame_10k = gif_frame.replace(side, struct.pack("<H", 10_000))  # where Pillow would warn, not refuse
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0)
    jpeg = bytearray(FORMS["JPEG"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 50_000, 50_000)
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0\xff\x3f\0"
    return {
        "png": png((50_000, 50_000), 8, 2, b"\0"),
        "gif": gif,
        "gif-frame": gif_frame,
        "gif-frame-10k": gif_frame_10k,
        "bmp": bmp,
        "jpeg": bytes(jpeg),
        "webp": webp,
    }


@pytest.mark.parametrize("name", sorted(bombs()))
def test_bomb_is_refused_before_it_is_decoded(monkeypatch, name):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match=r"pixels.*`max_pixels`"):
            open_image(bombs()[name])
    assert not caught
    assert before == Image.MAX_IMAGE_PIXELS


def test_message_about_a_bomb_gives_the_numbers():
    with pytest.raises(ImageError, match=f"50000 x 50000 pixels, more than the limit of {MAX_PIXELS:,}"):
        open_image(bombs()["png"])


@pytest.mark.parametrize("source", [encode(Image.fromarray(RAMP)), RAMP, Image.fromarray(RAMP)])
def test_limit_of_pixels_is_configurable_and_exact(source):
    assert open_image(source, max_pixels=11 * 24).size == (24, 11)
    with pytest.raises(ImageError, match="11 x 24 pixels, more than the limit of 263"):
        open_image(source, max_pixels=11 * 24 - 1)


@pytest.mark.parametrize("form", ["PNG", "BMP", "JPEG"])
def test_limit_of_pixels_may_exceed_that_of_pillow(monkeypatch, form):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(Image.fromarray(RAMP), form)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    assert open_image(data).size == (24, 11)


def test_limit_of_bytes(tmp_path):
    data = encode(Image.fromarray(RAMP))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (data, path):
        assert open_image(source, max_bytes=len(data)).size == (24, 11)
        with pytest.raises(ImageError, match=f"longer than the limit of {len(data) - 1}"):
            open_image(source, max_bytes=len(data) - 1)


def test_endless_file_is_not_read_to_its_end():
    if not pathlib.Path("/dev/zero").exists():
        pytest.skip("no endless file on this system")
    with pytest.raises(ImageError, match="longer than the limit of 1,000 bytes"):
        open_image("/dev/zero", max_bytes=1000)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (1, 65535)])
def test_thin_pictures_open(size):
    assert open_image(encode(Image.new("RGB", size[::-1], RED))).size == size[::-1]


# What is seen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(RAMP), form, exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(pixels(open_image(data)), np.asarray(expected))
    np.testing.assert_array_equal(pixels(open_image(Image.open(io.BytesIO(data)))), np.asarray(expected))
    assert (expected.size == (11, 24)) == (orientation >= 5)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3", b""])
def test_broken_exif_is_ignored(exif):
    data = encode(Image.fromarray(RAMP), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(open_image(data)), RAMP)


def over(color: np.ndarray, alpha: np.ndarray, background) -> np.ndarray:
    """Porter and Duff's `over` on an opaque background."""
    share = alpha[..., None] / 255
    return color * share + np.array(background) * (1 - share)


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 128, 40)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_laid_on_the_background(mode, background):
    alpha = np.tile(np.linspace(0, 255, 24).astype(np.uint8), (11, 1))
    image = Image.fromarray(np.dstack([RAMP, alpha]))
    gray = np.asarray(Image.fromarray(RAMP).convert("L"))
    if "L" in mode:
        image = image.convert("LA").convert(mode)
    elif mode == "PA":
        image = Image.fromarray(RAMP).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).convert("PA")
        image.putalpha(Image.fromarray(alpha))
    else:
        image = image.convert(mode)
    color = np.dstack([gray] * 3) if "L" in mode else RAMP
    expected = over(color, alpha, background)
    assert np.abs(pixels(open_image(image, background=background)) - expected).max() <= 2  # 8-bit rounding of RGBa, La


@pytest.mark.parametrize("source", ["tRNS-index", "tRNS-table", "tRNS-gray", "tRNS-gray-1bit", "tRNS-rgb", "gif"])
def test_transparent_color_is_laid_on_the_background(source):
    """2 x 2: the first pixel is transparent, the others are not."""
    palette = bytes([*RED, 0, 0, 255, 9, 9, 9])
    index = np.array([[0, 1], [1, 2]])
    data = {
        "tRNS-index": lambda: png((2, 2), 8, 3, rows(index, "u1"), (b"PLTE", palette), (b"tRNS", b"\0")),
        "tRNS-table": lambda: png((2, 2), 8, 3, rows(index, "u1"), (b"PLTE", palette), (b"tRNS", b"\0\xff\xff")),
        "tRNS-gray": lambda: png((2, 2), 8, 0, rows(index, "u1"), (b"tRNS", b"\0\0")),
        "tRNS-gray-1bit": lambda: png((2, 2), 1, 0, b"\0\x40\0\xc0", (b"tRNS", b"\0\0")),
        "tRNS-rgb": lambda: png((2, 2), 8, 2, rows(index.repeat(3, 1), "u1"), (b"tRNS", bytes(6))),
        "gif": lambda: encode(
            Image.frombytes("P", (2, 2), index.astype("u1").tobytes()), "GIF", transparency=0, optimize=False
        ),
    }[source]()
    white, green = (pixels(open_image(data, background=color)) for color in [(255, 255, 255), (0, 255, 0)])
    assert white[0, 0].tolist() == [255, 255, 255]
    assert green[0, 0].tolist() == [0, 255, 0]
    changed = (white != green).any(axis=2)
    assert changed.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("background", [(0, 0, 256), (-1, 0, 0)])
def test_background_must_be_a_color(background):
    with pytest.raises(ConfigError, match="background"):
        open_image(RAMP, background=background)


WIDE = np.array([[0, 255, 256, 300], [32768, 40000, 65279, 65535]], np.uint16)
HIGH_BYTE = np.array([[0, 0, 1, 1], [128, 156, 254, 255]])


def test_sixteen_bit_pictures_are_scaled_not_clipped():
    deep = Image.fromarray(WIDE)
    big_endian = Image.frombytes("I;16B", (4, 2), WIDE.astype(">u2").tobytes())
    color = np.dstack([WIDE, WIDE[::-1], WIDE])
    expected = np.dstack([HIGH_BYTE] * 3)
    for source in (encode(deep), deep, deep.convert("I"), big_endian, WIDE, WIDE[..., None], WIDE.astype(">u2")):
        np.testing.assert_array_equal(pixels(open_image(source)), expected)
    expected_color = np.dstack([HIGH_BYTE, HIGH_BYTE[::-1], HIGH_BYTE])
    for source in (png((2, 4), 16, 2, rows(color.reshape(2, -1), ">u2")), color):
        np.testing.assert_array_equal(pixels(open_image(source)), expected_color)


def test_sixteen_bit_transparent_gray():
    image = pixels(open_image(png((2, 4), 16, 0, rows(WIDE, ">u2"), (b"tRNS", struct.pack(">H", 300)))))
    expected = HIGH_BYTE.copy()
    expected[0, 3] = 255  # 256 has the same high byte, and stays opaque
    np.testing.assert_array_equal(image, np.dstack([expected] * 3))


def test_wide_integers_without_a_scale_are_refused():
    for values in ([[-1, 5]], [[0, 65536]]):
        with pytest.raises(ImageError, match="no known scale"):
            open_image(Image.fromarray(np.array(values, np.int32)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_are_converted_as_by_pillow(mode):
    image = Image.fromarray(RAMP).convert(mode)
    np.testing.assert_array_equal(pixels(open_image(image)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_looks_like_the_original(photos):
    photo = photos["astronaut"].resize((64, 64))
    opened = pixels(open_image(encode(photo.convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(opened.astype(int) - np.asarray(photo)).mean() < 3  # inverted inks would give about 100


def test_lab_is_refused():
    with pytest.raises(ImageError, match="LAB"):
        open_image(Image.new("LAB", (2, 2)))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (8, 6), color) for color in (RED, (0, 0, 255), (0, 255, 0))]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(pixels(open_image(data)), np.asarray(frames[0]))


# Arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_round_trip(dtype):
    np.testing.assert_array_equal(pixels(open_image(RAMP.astype(dtype) / dtype(255))), RAMP)
    gray = open_image(Image.fromarray(RAMP[..., 0].astype(np.float32) / np.float32(255)))  # mode F
    np.testing.assert_array_equal(pixels(gray), np.dstack([RAMP[..., 0]] * 3))


def test_gray_bool_and_alpha_arrays():
    np.testing.assert_array_equal(pixels(open_image(RAMP[..., 0])), np.dstack([RAMP[..., 0]] * 3))
    np.testing.assert_array_equal(pixels(open_image(RAMP[..., :1])), np.dstack([RAMP[..., 0]] * 3))
    mask = RAMP[..., 0] > 99
    np.testing.assert_array_equal(pixels(open_image(mask)), np.dstack([mask * 255] * 3))
    clear = np.dstack([RAMP, np.zeros_like(RAMP[..., 0])])
    assert (pixels(open_image(clear, background=RED)) == RED).all()
    np.testing.assert_array_equal(pixels(open_image(RAMP[:, ::-2])), RAMP[:, ::-2])  # not contiguous


@pytest.mark.parametrize(
    "array, problem",
    [
        (np.full((4, 4, 3), np.nan, np.float32), "floats must be from 0 to 1"),
        (np.full((4, 4), np.inf), "floats must be from 0 to 1"),
        (RAMP.astype(np.float32), "got values from 0 to 245"),
        (RAMP / 255 - 0.5, "floats must be from 0 to 1"),
        (RAMP.astype(np.int64), "int64"),
        (RAMP.astype(np.complex64), "complex64"),
        (RAMP.astype(object), "object"),
        (RAMP.astype("U3"), "str"),
        (np.moveaxis(RAMP, -1, 0), "channels last"),
        (RAMP[None], "one picture at a time"),
        (RAMP[..., :2], "got shape"),
        (RAMP[0, :, 0], "got shape"),
        (np.array(0.5), "got shape"),
        (np.zeros((0, 4, 3), np.uint8), "got shape"),
        (np.zeros((4, 0), np.uint8), "got shape"),
        (np.zeros((4, 4, 0), np.uint8), "got shape"),
    ],
)
def test_arrays_that_are_no_pictures(array, problem):
    with pytest.raises(ImageError, match=problem):
        open_image(array)


def test_picture_without_pixels():
    with pytest.raises(ImageError, match="0 x 5 pixels"):
        open_image(Image.new("RGB", (5, 0)))
