"""The door to the Hub, with the network replaced: what is asked for, and what each failure reads like."""

import types

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from vila_jax.errors import HubError
from vila_jax.hf.hub import fetch_data, locate


def test_local_folder_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    assert str(locate(tmp_path)) == str(tmp_path)


def test_downloads_neither_pickles_nor_code(tmp_path, monkeypatch):
    calls = []

    def download(hub_id, *, revision, allow_patterns):
        calls.append((hub_id, revision))
        names = ["config.json", "a.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"]
        offered = [*names, "pytorch_model.bin", "model.pt", "modeling.py"]
        assert list(filter_repo_objects(offered, allow_patterns=allow_patterns)) == names
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert str(locate("llava-hf/llava-1.5-7b-hf", revision="v1")) == str(tmp_path)
    assert calls == [("llava-hf/llava-1.5-7b-hf", "v1")]


NEITHER = ["/no/such/folder", "folder", "../x/y", "a/b/c", "a/..", "a b/c", "", "https://x.y/z", "a/b--c"]


@pytest.mark.parametrize("name", NEITHER)
def test_neither_folder_nor_id(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(HubError, match=r"no such folder, and this is not an id.*llava-hf/llava-1.5-7b-hf"):
        locate(name)


def _failure(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "first line\nsecond line")
    return error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "access to this model has to be granted.*hf auth login"),
        (errors.RepositoryNotFoundError, "no such model, or it is private"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.LocalEntryNotFoundError, "cannot be reached and the model is not in the local cache"),
        (errors.HFValidationError, "download failed: first line. Try again"),
        (OSError, "download failed: first line"),
        (RuntimeError, "download failed: first line"),
    ],
)
def test_failures_read_like_sentences(kind, message, monkeypatch):
    def download(*_, **__):
        raise _failure(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(HubError, match=message) as error:
        locate("a/b", revision="main")
    assert str(error.value).startswith("a/b@main: ")
    assert "second" not in str(error.value)


def test_offline():
    """Not replaced: the tests run with the Hub switched off."""
    with pytest.raises(HubError, match="nobody/nothing: the Hub cannot be reached"):
        locate("nobody/nothing")


OFFERED = {"README.md": 10, "code.py": 5, "dev/a-0.parquet": 600, "dev/b-0.parquet": 300, "test/a-0.parquet": 2000}


@pytest.fixture
def data_set(monkeypatch, tmp_path):
    """A Hub with one data set; the files that were downloaded."""
    taken = []

    def download(hub_id, *, repo_type, allow_patterns):
        assert (hub_id, repo_type) == ("a/b", "dataset")
        taken.extend(allow_patterns)
        return str(tmp_path)

    files = [types.SimpleNamespace(rfilename=name, size=size) for name, size in OFFERED.items()]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, files_metadata: types.SimpleNamespace(siblings=files)
    )
    return taken


def test_data_are_tables_and_pictures(data_set, tmp_path):
    assert str(fetch_data("a/b", most=2900)) == str(tmp_path)
    assert data_set == ["dev/a-0.parquet", "dev/b-0.parquet", "test/a-0.parquet"]


def test_no_more_data_than_asked_for(data_set):
    fetch_data("a/b", include=["dev/*"], most=900)
    assert data_set == ["dev/a-0.parquet", "dev/b-0.parquet"]


def test_no_more_data_than_allowed(data_set):
    with pytest.raises(HubError, match=r"a/b: 3 files of 0.0 GiB are more than the 0.0 GiB that are allowed"):
        fetch_data("a/b", most=2899)
    with pytest.raises(HubError, match=r"a/b: val/\*: the data set has no such file. It offers README.md, code.py"):
        fetch_data("a/b", include=["val/*"], most=10**9)
    with pytest.raises(HubError, match="no id on the Hugging Face Hub"):
        fetch_data("../b", most=10**9)
    assert not data_set


def test_a_data_set_that_is_not_there(monkeypatch):
    def info(*_, **__):
        raise _failure(errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    with pytest.raises(HubError, match="a/b: the Hub has no such data set, or it is private"):
        fetch_data("a/b", most=1)
