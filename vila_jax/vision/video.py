"""Opens a few frames of a video: a folder of pictures, an animated picture, or a video file.

As careful with what strangers write as `open_image`: the format is told by the first bytes and only such containers
are read that name no other files, sizes are checked before anything is kept, and messages hold none of the decoder's
own text.

Video files take the optional library PyAV (FFmpeg): `pip install 'vila-jax[video]'`.
"""

import abc
import contextlib
import functools
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from PIL import Image

from vila_jax.errors import ConfigError, ImageError
from vila_jax.vision.fetch import CLOUD_SCHEMES, read_source, shorten
from vila_jax.vision.open import MAX_PIXELS, is_picture, open_file, open_image

MAX_BYTES = 2**30
"""Bytes of the longest file that is read by default."""

MAX_FRAMES = 2**17
"""Frames of the longest video that is sampled by default: more than an hour at 30 a second."""

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_STILL = 0.1  # seconds of a frame of an animation that gives none, as browsers show it
_ANTICLOCKWISE = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def open_frames(
    source: str | os.PathLike | bytes | list[Any] | tuple[Any, ...],
    num_frames: int,
    fps: int | float | None = None,
    *,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> list[Image.Image]:
    """Samples frames of a video, as 8-bit RGB, in order.

    Args:
      source: a folder of JPEG, PNG, WebP, GIF or BMP files, a frame each in the natural order of their names (2 before
        10); or the path, data URI or bytes of an animated GIF, WebP or PNG, or of an MP4, QuickTime, Matroska, WebM or
        AVI file; or a list of the frames, pictures of any form that `open_image` reads.
      num_frames: how many frames are taken, evenly from the first to the last; of a shorter video some are repeated.
      fps: where given (and not 0), frames are taken at the times 0, 1 / fps, ... instead, `num_frames` at the most. A
        folder or list knows no times and is sampled evenly nevertheless.
      max_frames: frames of the longest video that is accepted.
      max_pixels: height x width of the largest frame that is accepted.
      max_bytes: the longest file that is read.

    Raises:
      ImageError: there is no such file, it is no video, has no frame, is damaged, or exceeds a limit.
      ConfigError: the sampling is impossible, or PyAV is needed and not installed.
    """
    if num_frames < 1:
        raise ConfigError(f"expected at least 1, got {num_frames}", where="num_frames")
    if fps is not None and not 0 <= fps < float("inf"):
        raise ConfigError(f"expected a positive number, got {fps}", where="fps", fix="Leave it out to sample evenly.")
    if isinstance(source, list | tuple):
        _check_list(source, max_frames)
        return [open_image(source[i], max_pixels=max_pixels) for i in _even(len(source), num_frames)]
    if isinstance(source, bytes):
        data, where = source, "video bytes"
    elif (folder := _folder(source)) is not None:
        files = _frame_files(folder, max_frames)
        return [open_image(files[i], max_pixels=max_pixels) for i in _even(len(files), num_frames)]
    else:
        data, where = read_source(source, max_bytes)
    container = _container(data)
    _check_file(data, container, where, max_bytes)
    kind = _Animation if container is None else _Video
    video = kind(data, container, where, max_frames, max_pixels)
    times = video.times()
    wanted = _timed(times, num_frames, float(fps)) if fps else _even(len(times), num_frames)
    frames = video.frames(frozenset(wanted))
    return [frames[i] for i in wanted]


def _even(count: int, num_frames: int) -> list[int]:
    """`num_frames` of `count` frames, from the first to the last. Source: VILA's loader for inference."""
    return np.round(np.linspace(0, count - 1, num_frames)).astype(int).tolist()


def _timed(times: Float[np.ndarray, " frames"], num_frames: int, fps: float) -> list[int]:
    """The frames that are shown at 0, 1 / fps, ... seconds; `times` says when each begins."""
    wanted = np.arange(num_frames) / fps + 1e-6  # what begins just then is shown, whatever the last bit says
    shown: Int[np.ndarray, " frames"] = np.searchsorted(times, wanted[wanted <= times[-1] + 2e-6], side="right") - 1
    return shown.tolist()


def _check_list(frames: Sequence[Any], max_frames: int) -> None:
    if not frames:
        raise ImageError("the list of frames is empty", where="video", fix="Give at least one frame.")
    _check_frames(len(frames), max_frames, "video")


# Folders ----------------------------------------------------------------------------------------------------------


def _folder(source: str | os.PathLike) -> epath.Path | None:
    text = os.fsdecode(source)
    scheme, is_url, _ = text.partition("://")
    if text.lstrip()[:5].lower() == "data:" or (is_url and scheme not in CLOUD_SCHEMES):
        return None
    try:
        path = epath.Path(text)
        return path if path.is_dir() else None
    except Exception:  # object stores raise classes of their own; `read_source` will say what is wrong
        return None


def _frame_files(folder: epath.Path, max_frames: int) -> list[epath.Path]:
    """The pictures of a folder in natural order: frame2 before frame10."""
    where = shorten(str(folder))
    files = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES and not path.name.startswith(".")]
    if not files:
        raise ImageError(f"no file in this folder ends in {', '.join(_PICTURES)}", where=where, fix="Check the path.")
    _check_frames(len(files), max_frames, where)
    return sorted(files, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text.lower(), int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


# Files ------------------------------------------------------------------------------------------------------------


def _container(data: bytes) -> str | None:
    """FFmpeg's name of a container, by its first bytes. Playlists, which name other files, are not among them."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    return "avi" if data[:4] == b"RIFF" and data[8:12] == b"AVI " else None


def _check_file(data: bytes, container: str | None, where: str, max_bytes: int) -> None:
    if not data:
        raise ImageError("the file is empty", where=where, fix="Save or download the video again.")
    if len(data) > max_bytes:
        fix = "Cut or compress the video, or raise `max_bytes`."
        raise ImageError(f"the file is longer than the limit of {max_bytes:,} bytes", where=where, fix=fix)
    if container is None and not is_picture(data):
        fix = "Convert it to one of these formats, or pass a folder of frames."
        raise ImageError(
            "this is not an MP4, QuickTime, Matroska, WebM, AVI, GIF, WebP or PNG file", where=where, fix=fix
        )


class _Moving(abc.ABC):
    """A file that holds frames.

    It is read twice, to count and to choose, because containers are often wrong about the number of their frames.
    """

    def __init__(self, data: bytes, container: str | None, where: str, max_frames: int, max_pixels: int):
        self.data, self.container, self.where = data, container, where
        self.max_frames, self.max_pixels = max_frames, max_pixels

    @abc.abstractmethod
    def walk(self) -> Iterator[tuple[float, Callable[[], Image.Image]]]:
        """Every frame in turn: the second at which it begins, and how to get it in RGB before the next is read."""

    def times(self) -> Float[np.ndarray, " frames"]:
        """The second at which each frame begins; the first at 0."""
        times: list[float] = []
        for begin, _ in self.walk():
            times.append(begin)
            _check_frames(len(times), self.max_frames, self.where)
        if not times:
            raise ImageError("the video has no frame", where=self.where, fix="Check the file in a player.")
        return np.maximum.accumulate(np.array(times) - times[0])

    def frames(self, wanted: frozenset[int]) -> dict[int, Image.Image]:
        """The frames of these numbers."""
        first = itertools.islice(self.walk(), max(wanted) + 1)
        return {i: picture() for i, (_, picture) in enumerate(first) if i in wanted}

    def check_pixels(self, size: tuple[int, int]) -> None:
        """Refuses frames of (width, height) beyond the limit."""
        width, height = size
        if width * height > self.max_pixels:
            what = f"a frame has {height} x {width} pixels, more than the limit of {self.max_pixels:,}"
            raise ImageError(what, where=self.where, fix="Scale the video down first, or raise `max_pixels`.")


class _Animation(_Moving):
    """A GIF, WebP or PNG; a picture that does not move has one frame."""

    def walk(self) -> Iterator[tuple[float, Callable[[], Image.Image]]]:
        image, begin = open_file(self.data, self.where, len(self.data)), 0.0
        for i in itertools.count():
            with _decoding(self.where):
                try:
                    image.seek(i)  # frames build upon each other, so none can be skipped
                except EOFError:
                    return
                self.check_pixels(image.size)
                image.load()
            yield begin, functools.partial(open_image, image, max_pixels=self.max_pixels)
            begin += image.info.get("duration", 0) / 1000 or _STILL


class _Video(_Moving):
    """The first video stream of a file that FFmpeg reads."""

    def walk(self) -> Iterator[tuple[float, Callable[[], Image.Image]]]:
        av = _av()
        with _decoding(self.where), av.open(io.BytesIO(self.data), format=self.container) as container:
            if not container.streams.video:
                fix = "Check in a player whether the file is complete."
                raise ImageError("no video stream is found", where=self.where, fix=fix)
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            self.check_pixels((stream.codec_context.width, stream.codec_context.height))
            for frame in container.decode(stream):
                self.check_pixels((frame.width, frame.height))
                yield frame.time or 0.0, functools.partial(self._upright, frame)

    def _upright(self, frame: Any) -> Image.Image:
        with _decoding(self.where):
            turns = round(frame.rotation / 90) % 4  # anticlockwise
            image = frame.to_image()
            return image.transpose(_ANTICLOCKWISE[turns - 1]) if turns else image


def _av() -> Any:
    try:
        import av
    except ImportError:
        fix = "pip install 'vila-jax[video]', or pass a folder of frames."
        raise ConfigError("reading a video file takes the library PyAV", where="video", fix=fix) from None
    return av


def _check_frames(count: int, limit: int, where: str) -> None:
    if count > limit:
        fix = "Cut the video, or raise `max_frames`."
        raise ImageError(f"the video has more frames than the limit of {limit:,}", where=where, fix=fix)


@contextlib.contextmanager
def _decoding(where: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Exception:  # decoders raise whatever they trip over
        fix = "Download it again, or convert it."
        raise ImageError("the video is damaged or cut off and cannot be decoded", where=where, fix=fix) from None
