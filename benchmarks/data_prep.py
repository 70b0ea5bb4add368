"""Data preparation against a bare decode-and-rewrite loop, and its memory over the number of records.

Throughput: the same picture files, in the same process, interleaved; process CPU time, median of the repeats. The bare
loop opens each file, shrinks it to the stored size, encodes it with the same quality and writes it; preparation also
reads labels, checks, filters, hashes, splits and writes verified shards. `ratio` is bare seconds / our seconds (1 =
as fast as the bare loop). Memory: peak RSS of processes of their own that prepare 10 000 and 100 000 records.

    python benchmarks/data_prep.py [--quick]

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vca.data.images import JPEG_QUALITY, SMALL_PX
from vca.data.prepare import run
from vca.data.settings import DataSettings
from vca.progress import Quiet

CASES = {  # name: side of the files in px, their format, side they are stored at
    "photos_shrunk": (512, "JPEG", 256),
    "photos_kept": (256, "JPEG", 256),
    "icons_kept": (64, "PNG", 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to see that it runs")
    parser.add_argument("--prepare", nargs=2, metavar=("LABELS", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        return print(json.dumps(prepare_alone(Path(arguments.prepare[0]), int(arguments.prepare[1]))))
    scale = 10 if arguments.quick else 1
    result = {"cpu": platform.processor() or platform.machine(), "quick": arguments.quick}
    result["throughput"] = {name: throughput(name, pairs=500 // scale, repeats=7) for name in CASES}
    result["ratio"] = min(case["ratio"] for case in result["throughput"].values())
    result["peak_rss_mb"] = {str(n): peak_rss_mb(n) for n in (10_000 // scale, 100_000 // scale)}
    few, many = result["peak_rss_mb"].values()
    result["peak_rss_growth"] = round(many / few, 3)
    print(json.dumps(result))


def throughput(name: str, *, pairs: int, repeats: int) -> dict[str, float]:
    """Images per CPU second of both, and their ratio."""
    side, kind, stored = CASES[name]
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        labels = make_data(root / "source", pairs=pairs, side=side, kind=kind)
        files = sorted((root / "source").glob("*/*"))
        for _ in range(repeats):
            bare.append(bare_loop(files, root / "bare", size=stored))
            start = time.process_time()
            run(settings(labels, size=stored), inputs={}, output=root / "data", progress=Quiet())
            ours.append(time.process_time() - start)
    bare_s, ours_s = statistics.median(bare), statistics.median(ours)
    return {
        "images": len(files),
        "bare_images_per_s": round(len(files) / bare_s, 1),
        "images_per_s": round(len(files) / ours_s, 1),
        "ratio": round(bare_s / ours_s, 3),
    }


def bare_loop(files: list[Path], output: Path, *, size: int) -> float:
    """CPU seconds for decoding, shrinking and rewriting every file."""
    output.mkdir(exist_ok=True)
    start = time.process_time()
    for path in files:
        with Image.open(path) as image:
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
            rgb = image.convert("RGB")
        out = io.BytesIO()
        if size <= SMALL_PX:
            rgb.save(out, "PNG")
        else:
            rgb.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        (output / path.name).write_bytes(out.getvalue())
    return time.process_time() - start


def settings(labels: Path, *, size: int) -> DataSettings:
    """Every record is used: nothing is left out by role."""
    return DataSettings.model_validate(
        {
            "sources": [{"kind": "preferences", "path": str(labels)}],
            "image_size": size,
            "min_side": 16,
            "reward_fraction": 0.75,
            "diffusion_fraction": 0,
        }
    )


def peak_rss_mb(records: int) -> float:
    """Peak resident memory of a process that prepares that many records of small pictures."""
    with tempfile.TemporaryDirectory() as folder:
        labels = make_data(Path(folder) / "source", pairs=records, side=64, kind="JPEG", distinct=2000)
        command = [sys.executable, __file__, "--prepare", str(labels), "64"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_rss_mb"])


def prepare_alone(labels: Path, size: int) -> dict[str, float]:
    """Prepare, then say what it took."""
    run(settings(labels, size=size), inputs={}, output=labels.parent.parent / "data", progress=Quiet())
    return {"peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def make_data(root: Path, *, pairs: int, side: int, kind: str, distinct: int = 10**6) -> Path:
    """Pictures with edges and texture, two for each pair, and the JSON of labels.

    After `distinct` pairs the same files come again under other paths: preparation can't know, and reads them anew.
    """
    draw = np.random.default_rng(0)
    words = random.Random(0)
    things = ("house", "boat", "cat", "tree", "lamp", "bridge", "coat", "apple")
    path = root / "preferences.json"
    root.mkdir(parents=True)
    with path.open("w") as file:
        for number in range(pairs):
            names = []
            for place in "ab":
                folder = root / f"{number // distinct:03d}"
                name = f"{folder.name}/{number % distinct:06d}{place}.{kind.lower()}"
                names.append(name)
                if number >= distinct:
                    if not folder.exists():
                        folder.symlink_to("000")
                    continue
                folder.mkdir(exist_ok=True)
                coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
                texture = draw.normal(0, 12, (side, side, 1))
                pixels = (np.asarray(image, dtype=np.float32) + texture).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / name, kind)
            record = {
                "pair_id": f"pair-{number}",
                "prompt": f"a {words.choice(things)} beside a {words.choice(things)}, number {number}",
                "images": names,
                "labels": [1, 0],
            }
            file.write(("[" if number == 0 else ",") + json.dumps(record) + "\n")
        file.write("]")
    return path


if __name__ == "__main__":
    main()
