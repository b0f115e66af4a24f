"""The model and adapters that the tests share."""

from __future__ import annotations

import string
from pathlib import Path

import polylora
import pytest
import tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def base(folder: Path) -> Path:
    return tiny_model.write_model(folder / "alphabet.gguf")


@pytest.fixture(scope="session")
def model(base: Path) -> polylora.Model:
    return polylora.Model(base, threads=2)


@pytest.fixture(scope="session")
def back(folder: Path) -> Path:
    """The alphabet backwards."""
    small = string.ascii_lowercase
    after = {ord(letter): ord(small[small.index(letter) - 1]) for letter in small}
    return tiny_model.write_adapter(folder / "back", after)


@pytest.fixture(scope="session")
def loud(folder: Path) -> Path:
    """After h an I, and on in capitals."""
    return tiny_model.write_adapter(folder / "loud", {ord("h"): ord("I")})
