"""The compile cache: what was compiled once is not compiled again, also not by the next process."""

import os
import pathlib

from vila_jax.errors import ConfigError

VARIABLE = "VILA_JAX_CACHE"
_OFF = ("off", "0", "none", "")


def cache_folder() -> pathlib.Path | None:
    """Where compiled programs are kept; None when that is switched off.

    Raises:
      ConfigError: the folder is remote, where XLA's own caches cannot be.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is None:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        return pathlib.Path(base) / "vila_jax" / "xla"
    if chosen.lower() in _OFF:
        return None
    if "://" in chosen:
        raise ConfigError(f"{chosen} is not a local folder", where=VARIABLE, fix="Give a local folder, or 'off'.")
    return pathlib.Path(chosen).expanduser()


def enable_compile_cache() -> pathlib.Path | None:
    """Switches JAX's persistent cache on, unless the user has already given it another folder by JAX's own means.

    Returns:
      The folder in use, None when there is none: it is switched off, or cannot be written to.
    """
    import jax

    own = jax.config.values["jax_compilation_cache_dir"]
    if own is not None and VARIABLE not in os.environ:
        return pathlib.Path(own)
    folder = cache_folder()
    if folder is not None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            folder = None
    if folder is not None and not os.access(folder, os.W_OK):
        folder = None
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder


def cache_size(folder: pathlib.Path) -> tuple[int, int]:
    """Number of files in the cache, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)
