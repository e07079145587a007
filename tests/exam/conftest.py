"""A model that answers at random, but depending on what it is shown."""

import pytest

import vila_jax
from tests.nano import export_narrow


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return vila_jax.from_pretrained(str(export_narrow(tmp_path_factory.mktemp("exam") / "narrow")))
