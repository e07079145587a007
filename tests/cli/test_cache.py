"""Where compiled programs are kept."""

import pathlib

import jax
import pytest

from vila_jax.cli import cache
from vila_jax.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    """JAX as it is when the user has set nothing, and afterwards as it was."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_lies_in_the_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "vila_jax" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "vila_jax" / "xla"


def test_it_is_made_for_its_owner_alone_and_switched_on(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "mine"))
    folder = cache.enable_compile_cache()
    assert folder == tmp_path / "mine"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.parametrize("off", ["off", "OFF", "0", ""])
def test_it_can_be_switched_off(monkeypatch, tmp_path, off):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setenv(cache.VARIABLE, off)
    assert cache.enable_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_what_the_user_told_jax_is_respected(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert cache.enable_compile_cache() == tmp_path / "own"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_a_remote_folder_is_refused(monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "gs://bucket/cache")
    with pytest.raises(ConfigError, match="not a local folder"):
        cache.enable_compile_cache()


def test_where_nothing_can_be_written_there_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "cache"))
    assert cache.enable_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_size(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "sub" / "b").write_bytes(b"678")
    assert cache.cache_size(pathlib.Path(tmp_path)) == (2, 8)
