"""What a server does to a picture: both layers, either, or none."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from repainted import png

from vca.errors import ArtifactError, SettingsError
from vca.provenance.credentials import Facts, Signer, read
from vca.provenance.keys import Keys
from vca.provenance.stamp import Stamp, release_mark
from vca.provenance.watermark import detect


@pytest.mark.parametrize("sign", [True, False])
@pytest.mark.parametrize("watermark", [True, False])
def test_each_layer_is_there_where_it_is_switched_on(
    sign: bool, watermark: bool, keys: Keys, facts: Facts, icons: list[np.ndarray]
) -> None:
    data = Stamp.of(keys, sign=sign, watermark=watermark).file(icons[7], facts=facts, encode=png)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    assert read(data, trust_anchors=keys.trust_anchors).state == ("trusted" if sign else "none")
    payload = detect(np.asarray(image), key=keys.watermark_key)
    assert payload == (release_mark(facts.release) if watermark else None)
    assert watermark or np.array_equal(image, icons[7])


@pytest.mark.parametrize(
    ("missing", "layer", "told"),
    [
        ("certificates", {"sign": True, "watermark": False}, "certificates.pem and private_key.pem"),
        ("private_key", {"sign": True, "watermark": False}, "certificates.pem and private_key.pem"),
        ("watermark_key", {"sign": False, "watermark": True}, "watermark.key"),
    ],
)
def test_a_layer_without_its_keys_is_no_layer_left_out(
    missing: str, layer: dict[str, bool], told: str, keys: Keys
) -> None:
    with pytest.raises(ArtifactError, match=f"needs {told}; add .* or switch"):
        Stamp.of(replace(keys, **{missing: None}), **layer)
    Stamp.of(replace(keys, **{missing: None}), sign=not layer["sign"], watermark=not layer["watermark"])


def test_too_small_a_picture(stamp: Stamp, facts: Facts) -> None:
    with pytest.raises(SettingsError, match="32x32 px are too few"):
        stamp.file(np.zeros((32, 32, 3), np.uint8), facts=facts, encode=png)


def test_releases_have_marks_of_their_own_that_stay() -> None:
    assert release_mark("2026-11.3") == 21687
    assert len({release_mark(f"release {n}") for n in range(100)}) > 97  # of 65 536; two of a hundred may meet


def test_the_key_is_not_printed(signer: Signer) -> None:
    assert "secret" not in repr(Stamp(signer=signer, watermark_key=b"secret"))
