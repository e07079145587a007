"""Under which circumstances numbers were made, and the page they are put on."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import vila_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "scikit-learn")
_BEGIN, END = "<!-- begin: written by `{by}` -->", "<!-- end -->"
BEGIN = _BEGIN.format(by="python -m eval nano")


def circumstances(model: Path | None, command: str, seconds: float) -> dict[str, Any]:
    """Date, command, machine, versions, and the fingerprint of the weights where a model was read."""
    import jax

    versions = {"vila_jax": vila_jax.__version__, "python": platform.python_version()}
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "seconds": round(seconds, 1),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "versions": versions | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    if model is not None:
        facts["weights_sha256"] = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    return facts


def processor() -> str:
    """The name of the processor as Linux tells it, else its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def insert(page: Path, section: str, *, by: str = "python -m eval nano") -> None:
    """Puts a section between the two marks of a page, in place of what is there.

    A page that does not exist is begun; to one without marks they are added at the end.

    Args:
      by: the command that writes the section; the first mark names it.
    """
    begin = _BEGIN.format(by=by)
    text = page.read_text(encoding="utf-8") if page.exists() else f"# {page.stem}\n"
    if begin not in text or END not in text.partition(begin)[2]:
        text = f"{text.rstrip()}\n\n{begin}\n{END}\n"
    before, _, rest = text.partition(begin)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{begin}\n\n{section.strip()}\n\n{END}{after}", encoding="utf-8")
