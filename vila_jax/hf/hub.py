"""The one door to the Hugging Face Hub."""

import re

from etils import epath

from vila_jax.errors import HubError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOCAL_OR_BUCKET = re.compile(r"(gs|s3)://|(?!\w+://).")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


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


def _download(hub_id: str, revision: str | None) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    where = hub_id if revision is None else f"{hub_id}@{revision}"
    try:
        return huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=_WANTED)
    except errors.GatedRepoError:
        what, fix = "access to this model has to be granted", "Ask for it on its page, then run `hf auth login`."
    except errors.RevisionNotFoundError:
        what, fix = "the Hub has no such revision of this model", "Check the revision."
    except errors.RepositoryNotFoundError:
        what, fix = "the Hub has no such model, or it is private", "Check the id, or run `hf auth login`."
    except errors.LocalEntryNotFoundError:
        what, fix = "the Hub cannot be reached and the model is not in the local cache", "Check the network connection."
    except Exception as error:  # which HTTP library is below, and hence which class this is, depends on the version
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what, fix = f"the download failed: {reason}", "Try again: it continues where it stopped."
    raise HubError(what, where=where, fix=fix)
