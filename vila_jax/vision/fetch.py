"""The bytes of a picture that is named by a path or written out as a data URI.

Nothing is downloaded from the web: a URL in a prompt or a dataset must not make this process talk to a host of its
author's choice (server-side request forgery). Object stores are read because only the user's own credentials open them.
"""

import base64
import binascii
import os
import re
import urllib.parse

from etils import epath

from vila_jax.errors import ImageError

CLOUD_SCHEMES = ("gs", "s3", "az")
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.\-]*)://", re.IGNORECASE)


def read_source(source: str | os.PathLike, max_bytes: int) -> tuple[bytes, str]:
    """Reads a path, a `gs://`, `s3://` or `az://` object, or a base64 data URI.

    Args:
      source: the path or the data URI.
      max_bytes: at most one byte more than this is read from a file, so that the caller can tell that it is too long.

    Returns:
      The bytes, and a short name of their source for messages.

    Raises:
      ImageError: nothing can be read there, or the source is a URL.
    """
    text = os.fsdecode(source)
    if text.lstrip()[:5].lower() == "data:":
        return _decode_data_uri(text), "data URI"
    scheme = _SCHEME.match(text)
    if scheme is not None and scheme[1] not in CLOUD_SCHEMES:
        raise _refused_url(scheme[1].lower(), shorten(text))
    return _read_path(text, max_bytes), shorten(text)


def shorten(text: str, length: int = 120) -> str:
    """`text`, cut to `length` characters: a whole base64 picture does not belong in a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _refused_url(scheme: str, where: str) -> ImageError:
    if scheme == "file":
        return ImageError("file URLs are not read", where=where, fix="Pass the path without `file://`.")
    stores = ", ".join(f"{name}://" for name in CLOUD_SCHEMES)
    return ImageError(
        f"pictures are not downloaded from {scheme}:// addresses",
        where=where,
        fix=f"Download it first and pass the path or the bytes (object stores are read: {stores}).",
    )


def _decode_data_uri(uri: str) -> bytes:
    """Source: RFC 2397; only its base64 form is of use for a picture."""
    header, comma, body = uri.partition(",")
    form = "Write data:image/png;base64, followed by the base64 text of the file."
    if not comma or not header.rstrip().lower().endswith(";base64"):
        raise ImageError("the data URI is not base64-encoded", where="data URI", fix=form)
    try:
        return base64.b64decode(urllib.parse.unquote_to_bytes(body).translate(None, b" \t\r\n"), validate=True)
    except binascii.Error:
        raise ImageError("the text after the comma is not valid base64", where="data URI", fix=form) from None


def _read_path(path: str, max_bytes: int) -> bytes:
    where = shorten(path)
    try:
        with epath.Path(path).open("rb") as file:
            return file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        fix = "Check the spelling; a relative path starts from the current folder."
        raise ImageError("there is no such file", where=where, fix=fix) from None
    except IsADirectoryError:
        raise ImageError("this is a folder, not a picture", where=where, fix="Pass a file inside it.") from None
    except PermissionError:
        raise ImageError("permission to read it is denied", where=where, fix="Change its permissions.") from None
    except Exception:  # object stores raise classes of their own, and a text that is no path raises several others
        fix = "Check the path, or the access to its object store; base64 text needs the prefix data:image/png;base64,"
        raise ImageError("it cannot be read", where=where, fix=fix) from None
