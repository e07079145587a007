"""A model that answers at random, but depending on what it is shown."""

import pytest

import vila_jax
from tests.adapters import stand_ins


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.nano import export_narrow  # it wants the training extra, which the environment of lmms-eval lacks

    return str(export_narrow(tmp_path_factory.mktemp("adapters") / "narrow"))


@pytest.fixture(scope="module")
def model(folder):
    return vila_jax.from_pretrained(folder)


@pytest.fixture(scope="module")
def log():
    """The stand-ins are in place; what the adapters log."""
    with stand_ins.installed() as logger:
        yield logger
