"""Opens a picture from anywhere, safely, as 8-bit RGB.

What the model sees must be what a person sees: the EXIF orientation is applied, transparency is laid on a stated
background, 16-bit pictures are scaled (not clipped) to 8 bits, and of an animation the first frame is taken.

A picture is also the one input that strangers write. So its declared size is checked before it is decoded, only formats
with well-worn decoders are accepted, and messages hold nothing of the decoder's own text.
"""

import io
import os
import warnings

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vila_jax.errors import ConfigError, ImageError, ImageSizeError
from vila_jax.vision import fetch

MAX_PIXELS = 89_478_485
"""Pixels of the largest picture that is decoded by default: where Pillow starts to warn (256 MiB of RGB)."""

MAX_BYTES = 64 * 2**20
"""Bytes of the longest file that is read by default."""

Color = tuple[int, int, int]

# No TIFF: one file may hold dozens of codecs and layouts, decoded by the library with the longest record of memory
# errors. No vector or camera formats: Pillow hands them to other programs.
_PLUGINS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
)
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(
    source: object,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    background: Color = (255, 255, 255),
) -> Image.Image:
    """Opens a picture as 8-bit RGB, upright, without transparency.

    Args:
      source: one of
        * a path (`str` or `os.PathLike`, local or `gs://`, `s3://`, `az://`) of a JPEG, PNG, WebP, GIF or BMP file;
        * the bytes of such a file, or a data URI of them (`data:image/png;base64,...`);
        * a PIL image of any mode but LAB;
        * a numpy array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (the fourth channel is alpha): uint8, uint16, bool, or
          floating point in [0, 1].
      max_pixels: the largest height x width that is decoded. Pillow's own limit (twice the default) stays in force for
        WebP and GIF.
      max_bytes: the longest encoded file that is read.
      background: the colour (red, green, blue) under transparent pixels; white is what transformers uses.

    Returns:
      A new PIL image of mode RGB; `source` is left as it was.

    Raises:
      ImageError: the picture cannot be read, is damaged, is too large, or is of an unsupported kind. URLs are refused.
    """
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise ConfigError(f"expected three integers from 0 to 255, got {background}", where="background")
    if isinstance(source, Image.Image):
        return _to_rgb(source, background, max_pixels, "PIL image")
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), background, max_pixels, "array")
    if isinstance(source, bytes | bytearray | memoryview):
        data, where = bytes(source), "image bytes"
    elif isinstance(source, str | os.PathLike):
        data, where = fetch.read_source(source, max_bytes)
    else:
        raise ImageError(
            f"a {type(source).__name__} is not a picture",
            where="image",
            fix="Pass a PIL image, a numpy array, a path, bytes or a data URI.",
        )
    return _to_rgb(open_file(data, where, max_bytes), background, max_pixels, where)


def open_file(data: bytes, where: str, max_bytes: int) -> Image.Image:
    """Reads the header of an encoded picture; the pixels stay undecoded, and its size unchecked.

    Raises:
      ImageError: the file is empty, too long, of another format, or its header is damaged.
    """
    if not data:
        raise ImageError("the file is empty", where=where, fix="Save or download the picture again.")
    if len(data) > max_bytes:
        fix = "Save the picture at a lower resolution, or raise `max_bytes`."
        raise ImageSizeError(f"the file is longer than the limit of {max_bytes:,} bytes", where=where, fix=fix)
    plugin = _plugin(data)
    if plugin is None:
        fix = "Convert it to one of these formats."
        raise ImageError("this is not a JPEG, PNG, WebP, GIF or BMP file", where=where, fix=fix)
    try:
        return _read_header(plugin, data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("more pixels than Pillow accepts", where) from None
    except Exception:  # the plugins raise whatever their parsers trip over
        raise _damaged(where) from None


def is_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is opened here."""
    return _plugin(data) is not None


def _plugin(data: bytes) -> type[ImageFile.ImageFile] | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    return next((plugin for magic, plugin in _PLUGINS if data.startswith(magic)), None)


def _read_header(plugin: type[ImageFile.ImageFile], data: bytes) -> Image.Image:
    # The plugin is called directly because the size check of `Image.open` is set by a global variable of Pillow only.
    if plugin is not GifImageFile:
        return plugin(io.BytesIO(data))
    with warnings.catch_warnings():  # a first frame larger than the declared screen reaches that same check
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return plugin(io.BytesIO(data))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"expected an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got shape {list(array.shape)}",
            where="array",
            fix="Pass one picture at a time, channels last (np.moveaxis(array, 0, -1)).",
        )
    return Image.fromarray(_eight_bits(array, "array"))


def _to_rgb(image: Image.Image, background: Color, max_pixels: int, where: str) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(f"{height} x {width} pixels, more than the limit of {max_pixels:,}", where)
    if 0 in image.size:
        raise ImageError(f"the picture has {height} x {width} pixels", where=where, fix="Pass one that is not empty.")
    if image.mode == "LAB":
        fix = "Convert it to RGB with PIL.ImageCms, which knows its white point."
        raise ImageError("colour mode LAB is not supported", where=where, fix=fix)
    try:
        image.load()
        return _upright(_flatten(image, background, where), image)
    except ImageError:
        raise
    except Exception:  # decoders raise whatever they trip over
        raise _damaged(where) from None


def _flatten(image: Image.Image, background: Color, where: str) -> Image.Image:
    """8-bit RGB, with what is transparent laid on the background."""
    if image.mode[0] in "IF":
        image = _from_deep(image, where)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow knows no direct way from here to RGBA
        image = image.convert("LA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")


def _from_deep(image: Image.Image, where: str) -> Image.Image:
    """A grayscale picture of 16-bit integers or of floats, in 8 bits; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "I":
        if values.min() < 0 or values.max() > 65535:
            fix = "Scale it to 16 or 8 bits first."
            raise ImageError("32-bit pixel values outside 0 to 65535 have no known scale", where=where, fix=fix)
        values = values.astype(np.uint16)
    gray = Image.fromarray(_eight_bits(values, where))
    transparent = image.info.get("transparency")  # a PNG may name one 16-bit gray as transparent
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def _eight_bits(values: np.ndarray, where: str) -> np.ndarray:
    """Pixel values as uint8, by the scale that their dtype implies."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)  # the high byte, as Pillow takes of 16-bit colour PNGs
    if values.dtype.kind != "f":
        fix = "Pass uint8, uint16, bool, or floats from 0 to 1."
        raise ImageError(f"pixel values of type {values.dtype.name} are not supported", where=where, fix=fix)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # so written, NaN fails too
        fix = "Scale it, or convert it to uint8 if it runs from 0 to 255."
        raise ImageError(f"floats must be from 0 to 1, got values from {low:.6g} to {high:.6g}", where=where, fix=fix)
    return np.round(values.astype(np.result_type(values, np.float32)) * 255).astype(np.uint8)


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    """Applies the EXIF orientation of the original. Source: `PIL.ImageOps.exif_transpose`."""
    try:
        orientation = original.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken metadata around sound pixels: shown as stored, as browsers do
        return rgb
    method = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return rgb if method is None else rgb.transpose(method)


def _too_large(what: str, where: str) -> ImageSizeError:
    return ImageSizeError(f"the picture has {what}", where=where, fix="Scale it down first, or raise `max_pixels`.")


def _damaged(where: str) -> ImageError:
    return ImageError(
        "the picture is damaged or cut off and cannot be decoded", where=where, fix="Save or download it again."
    )
