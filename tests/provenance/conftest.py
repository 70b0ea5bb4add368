"""Keys and pictures that the tests of provenance share."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vca.data.emoji.catalogue import SHIPPED
from vca.provenance.credentials import Facts, Signer
from vca.provenance.keys import Keys, create
from vca.provenance.stamp import Stamp


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A keys folder."""
    place = tmp_path_factory.mktemp("keys") / "keys"
    create(place)
    return place


@pytest.fixture(scope="session")
def keys(folder: Path) -> Keys:
    return Keys.load(folder)


@pytest.fixture(scope="session")
def signer(keys: Keys) -> Signer:
    return Signer(certificates=keys.certificates, private_key=keys.private_key)


@pytest.fixture(scope="session")
def stamp(signer: Signer, keys: Keys) -> Stamp:
    return Stamp(signer=signer, watermark_key=keys.watermark_key)


@pytest.fixture(scope="session")
def facts() -> Facts:
    return Facts(release="2026-11.3", request_id="7f3e", model="sd-2.1+adapter@1c9e")


@pytest.fixture(scope="session")
def icons() -> list[np.ndarray]:
    """1000 of the shipped pictures, from all over the catalogue, [64, 64, 3] each."""
    files = pq.read_table(SHIPPED, columns=["png"])["png"]
    chosen = np.linspace(0, len(files) - 1, 1000).astype(int)
    return [np.asarray(Image.open(io.BytesIO(files[int(index)].as_py())).convert("RGB")) for index in chosen]
