"""The watermark and the signature: what they cost, how far they change a picture, what the watermark outlives.

Icons are pictures of EmojiDialog, flat and on white, as the local preset draws them; at 512 px they are enlarged.
Textures are coloured noise in six octaves. Photographs are not among them: the repository has none.

    python benchmarks/provenance.py [--quick]

The last line is one JSON object. Times are process CPU time, medians.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance, ImageFilter

from serving.pictures import encode
from vca.data.emoji.catalogue import SHIPPED
from vca.provenance.certificates import development_chain
from vca.provenance.credentials import Facts, Signer, read
from vca.provenance.stamp import Stamp
from vca.provenance.watermark import detect, embed

KEY = b"benchmark"
FACTS = Facts(release="benchmark", request_id="0", model="none")
LANCZOS = Image.Resampling.LANCZOS


def saved(image: Image.Image, **how: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, **how)
    return Image.open(file).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    """There and back."""
    width, height = image.size
    return image.resize((round(width * factor), round(height * factor)), LANCZOS).resize((width, height), LANCZOS)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "PNG": lambda image: saved(image, format="PNG"),
    "JPEG 90": lambda image: saved(image, format="JPEG", quality=90),
    "JPEG 75": lambda image: saved(image, format="JPEG", quality=75),
    "JPEG 50": lambda image: saved(image, format="JPEG", quality=50),
    "WebP 80": lambda image: saved(image, format="WEBP", quality=80),
    "blur 0.6 px": lambda image: image.filter(ImageFilter.GaussianBlur(0.6)),
    "blur 1 px": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "10 brighter": lambda image: image.point(lambda value: value + 10),
    "10 darker": lambda image: image.point(lambda value: value - 10),
    "contrast 1.1": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "to 3/4 and back": lambda image: resized(image, 0.75),
    "to 1/2 and back": lambda image: resized(image, 0.5),
    "to double and back": lambda image: resized(image, 2),
    "1 px cut off": lambda image: image.crop((1, 1, *image.size)),
    "turned by 1 degree": lambda image: image.rotate(1, Image.Resampling.BICUBIC),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pictures, to see that it runs")
    many, few = (20, 4) if parser.parse_args().quick else (200, 40)
    pictures = {
        "icons, 64 px": icons(many),
        "textures, 64 px": [texture(64, seed=seed) for seed in range(few)],
        "icons, 512 px": [np.asarray(Image.fromarray(icon).resize((512, 512), LANCZOS)) for icon in icons(few)],
        "textures, 512 px": [texture(512, seed=seed) for seed in range(few)],
        "textures, 1024 px": [texture(1024, seed=seed) for seed in range(few // 4)],
    }
    chain = development_chain()
    signer = Signer(certificates=chain.certificates, private_key=chain.private_key)
    results: dict[str, Any] = {"cpu": platform.processor() or platform.machine()}
    for name, pixels in pictures.items():
        results[name] = {**look_and_survival(pixels), **costs(pixels[:4], signer, anchors=chain.anchors)}
        print(name, json.dumps(results[name], indent=1))
    print(json.dumps(results))


def icons(count: int) -> list[np.ndarray]:
    """Shipped pictures from all over the catalogue, [64, 64, 3] each."""
    files = pq.read_table(SHIPPED, columns=["png"])["png"]
    chosen = np.linspace(0, len(files) - 1, count).astype(int)
    return [np.asarray(Image.open(io.BytesIO(files[int(index)].as_py())).convert("RGB")) for index in chosen]


def texture(side: int, *, seed: int) -> np.ndarray:
    """[side, side, 3]: noise whose octaves are the weaker the finer they are, as in photographs."""
    random = np.random.default_rng(seed)
    pixels_HWC = np.full((side, side, 3), random.uniform(60, 200), np.float32)
    for cells in (4, 8, 16, 32, 64):
        for channel in range(3):
            octave = Image.fromarray(random.normal(0, 96 / np.sqrt(cells), (cells, cells)).astype(np.float32))
            pixels_HWC[..., channel] += np.asarray(octave.resize((side, side), Image.Resampling.BICUBIC))
    return (pixels_HWC + random.normal(0, 3, pixels_HWC.shape)).clip(0, 255).astype(np.uint8)


def look_and_survival(pictures: list[np.ndarray]) -> dict[str, Any]:
    """PSNR in dB, and the share of pictures whose payload is still found after each change."""
    marked = [embed(pixels, key=KEY, payload=number) for number, pixels in enumerate(pictures)]
    noise = [psnr(before, after) for before, after in zip(pictures, marked, strict=True)]
    found = {
        name: statistics.mean(
            detect(np.asarray(change(Image.fromarray(pixels))), key=KEY) == number
            for number, pixels in enumerate(marked)
        )
        for name, change in CHANGES.items()
    }
    return {"psnr": round(statistics.median(noise), 1), "lowest_psnr": round(min(noise), 1), "found": found}


def png(pixels: np.ndarray) -> bytes:
    """As the generator encodes it."""
    return encode(pixels, "png", 100)


def psnr(before: np.ndarray, after: np.ndarray) -> float:
    """Peak signal-to-noise ratio, dB."""
    return float(10 * np.log10(255**2 / np.mean((before.astype(np.float32) - after) ** 2)))


def costs(pictures: list[np.ndarray], signer: Signer, *, anchors: bytes) -> dict[str, float]:
    """Milliseconds of each part and bytes of each file, per picture."""
    marking = Stamp(signer=None, watermark_key=KEY)
    plain = [png(pixels) for pixels in pictures]
    marked = [marking.file(pixels, facts=FACTS, encode=png) for pixels in pictures]
    signed = [signer.sign(data, facts=FACTS) for data in marked]
    return {
        "embed_ms": milliseconds(lambda pixels: embed(pixels, key=KEY, payload=1), pictures),
        "detect_ms": milliseconds(lambda pixels: detect(pixels, key=KEY), pictures),
        "png_ms": milliseconds(png, pictures),
        "sign_ms": milliseconds(lambda data: signer.sign(data, facts=FACTS), marked),
        "read_ms": milliseconds(lambda data: read(data, trust_anchors=anchors), signed),
        "png_bytes": statistics.mean(map(len, plain)),
        "marked_png_bytes": statistics.mean(map(len, marked)),
        "signed_png_bytes": statistics.mean(map(len, signed)),
    }


def milliseconds(call: Callable[[Any], object], items: list[Any]) -> float:
    """CPU time of one call: each item ten times after once for the caches, and the median of the items."""
    times = []
    for item in items:
        call(item)
        started = time.process_time()
        for _ in range(10):
            call(item)
        times.append((time.process_time() - started) * 100)
    return round(statistics.median(times), 2)


if __name__ == "__main__":
    main()
