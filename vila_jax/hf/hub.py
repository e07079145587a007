"""The one door to the Hugging Face Hub."""

import contextlib
import fnmatch
import re
from collections.abc import Iterator, Sequence

from etils import epath

from vila_jax.errors import HubError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOCAL_OR_BUCKET = re.compile(r"(gs|s3)://|(?!\w+://).")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_DATA = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.tsv", "*.txt", "*.jpg", "*.jpeg", "*.png", "*.webp")


def locate(path_or_hub_id: str | epath.PathLike, *, revision: str | None = None) -> epath.Path:
    """The folder of a checkpoint: the local one if it exists, else the Hub's copy in the local cache.

    Only JSON, safetensors, tokenizer and template files are downloaded, never pickles or code.

    Raises:
      HubError: neither a folder nor an id, no such model or revision, no access, or no network.
    """
    name = str(path_or_hub_id)
    if _LOCAL_OR_BUCKET.match(name) and (folder := epath.Path(path_or_hub_id)).is_dir():
        return folder
    if not is_hub_id(name):
        raise HubError(
            "there is no such folder, and this is not an id on the Hugging Face Hub",
            where=name,
            fix="Give the folder of a checkpoint, or an id like llava-hf/llava-1.5-7b-hf.",
        )
    return fetch(name, revision=revision)


def is_hub_id(name: str) -> bool:
    """Whether this has the form of an id on the Hub."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def fetch(hub_id: str, *, revision: str | None = None) -> epath.Path:
    """The Hub's copy of a model in the local cache, even if there is a folder of that name.

    Raises:
      HubError: as `locate`.
    """
    return epath.Path(_download(hub_id, revision))


def fetch_data(hub_id: str, *, include: Sequence[str] = (), most: int) -> epath.Path:
    """The Hub's copy of a data set in the local cache: its tables and pictures, never code.

    Args:
      include: patterns of files, of those that are taken at all (default: all of them).
      most: bytes that may be downloaded.

    Raises:
      HubError: no id, no such data set or files, more of them than may be downloaded, no access, or no network.
    """
    import huggingface_hub

    if not is_hub_id(hub_id):
        raise HubError("this is no id on the Hugging Face Hub", where=hub_id, fix="Write OWNER/NAME.")
    with _told(hub_id, "data set"):
        offered = huggingface_hub.HfApi().dataset_info(hub_id, files_metadata=True).siblings or []
    wanted = [
        file
        for file in offered
        if any(fnmatch.fnmatch(file.rfilename, own) for own in _DATA)
        and (not include or any(fnmatch.fnmatch(file.rfilename, own) for own in include))
    ]
    if not wanted:
        fix = f"It offers {', '.join(sorted({file.rfilename for file in offered})[:5]) or 'nothing'}, ..."
        raise HubError("the data set has no such file", where=f"{hub_id}: {' '.join(include)}".strip(" :"), fix=fix)
    if (size := sum(file.size or 0 for file in wanted)) > most:
        what = (
            f"{len(wanted)} files of {size / 2**30:.1f} GiB are more than the {most / 2**30:.1f} GiB that are allowed"
        )
        raise HubError(what, where=hub_id, fix="Name the files that are needed, or allow more.")
    with _told(hub_id, "data set"):
        names = [file.rfilename for file in wanted]
        return epath.Path(huggingface_hub.snapshot_download(hub_id, repo_type="dataset", allow_patterns=names))


def _download(hub_id: str, revision: str | None) -> str:
    import huggingface_hub

    with _told(hub_id if revision is None else f"{hub_id}@{revision}", "model"):
        return huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=_WANTED)


@contextlib.contextmanager
def _told(where: str, thing: str) -> Iterator[None]:
    """Says in a sentence what went wrong with the Hub."""
    from huggingface_hub import errors

    try:
        yield
        return
    except errors.GatedRepoError:
        what, fix = f"access to this {thing} has to be granted", "Ask for it on its page, then run `hf auth login`."
    except errors.RevisionNotFoundError:
        what, fix = f"the Hub has no such revision of this {thing}", "Check the revision."
    except errors.RepositoryNotFoundError:
        what, fix = f"the Hub has no such {thing}, or it is private", "Check the id, or run `hf auth login`."
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        what = f"the Hub cannot be reached and the {thing} is not in the local cache"
        fix = "Check the network connection."
    except Exception as error:  # which HTTP library is below, and hence which class this is, depends on the version
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what, fix = f"the download failed: {reason}", "Try again: it continues where it stopped."
    raise HubError(what, where=where, fix=fix)
