"""The regime every test runs under.

* jaxtyping + beartype check every annotated signature of the package (in pytest only: users pay nothing for it).
* 8 virtual CPU devices, so that sharding is exercised on any machine.
* Silent rank promotion is an error, as are all warnings (see pyproject.toml).
* Freed memory is kept (see `vila_jax.heap`), which is what most of the time would go into.
* Compilations are cached between runs, and `count_compilations` counts them. Within a run each file forgets its own:
  every compiled program holds maps of memory, of which a process may have 65,530, and thousands of them end in a crash.
"""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network is a defect
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("vila_jax", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

from vila_jax.heap import keep_freed_memory  # noqa: E402

keep_freed_memory()

jax.config.update("jax_numpy_rank_promotion", "raise")
# A cache for each process of a run: one must not read what another is just writing.
programs = pathlib.Path(__file__).parents[1] / ".cache" / "jax-tests" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
jax.config.update("jax_compilation_cache_dir", str(programs))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of the vectors recorded from the reference implementations."""
    return GOLDEN


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Lets go of the programs that the tests of a file have compiled."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def count_compilations():
    """Counts XLA compilations: `with count_compilations() as count: ...; assert count() == 1`."""
    from tests.compilations import counter

    return counter
