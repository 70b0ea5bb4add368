from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn
from stores import picture

from vca.feedback.phash import LOW, SIDE, distance, phash


def opened(seed: int) -> Image.Image:
    return Image.open(io.BytesIO(picture(seed, 128))).convert("RGB")


def saved(image: Image.Image, kind: str, **how: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_sign_of_the_lowest_frequencies(seed: int) -> None:
    image = opened(seed)
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(grey, norm="ortho")[:LOW, :LOW].ravel()
    bits = low > np.median(low[1:])
    assert phash(image) == f"{int(''.join('01'[int(bit)] for bit in bits), 2):016x}"


@pytest.mark.parametrize("seed", range(10))
def test_copies_are_near_and_other_pictures_far(seed: int) -> None:
    image = opened(seed)
    copies = [
        saved(image, "JPEG", quality=60),
        saved(image, "WEBP", quality=70),
        image.resize((64, 64)),
        ImageEnhance.Brightness(image).enhance(1.1),
    ]
    assert max(distance(phash(image), phash(copy)) for copy in copies) <= 4
    assert min(distance(phash(image), phash(opened(other))) for other in range(100, 140)) > 12
