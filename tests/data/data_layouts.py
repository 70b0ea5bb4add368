"""Small data sets in exactly the layouts that the real ones are published in."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vca.data.manifest import SourceCounts


def image_bytes(seed: int, *, size: tuple[int, int] = (48, 48), format: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture that no other seed gives, sharp enough for any filter."""
    draw = random.Random(seed)
    width, height = size
    small = Image.frombytes("RGB", (8, 8), draw.randbytes(192))
    image = small.resize((width, height), Image.Resampling.NEAREST).convert(mode)
    out = io.BytesIO()
    image.save(out, format, **({"lossless": True} if format == "WEBP" else {}))
    return out.getvalue()


def flat_image_bytes() -> bytes:
    """A picture of one colour: nothing in it is sharp."""
    out = io.BytesIO()
    Image.new("RGB", (48, 48), (80, 90, 100)).save(out, "PNG")
    return out.getvalue()


def put(path: Path, data: bytes | str | Any) -> Path:
    """Write bytes, text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(data, bytes):
        data = (data if isinstance(data, str) else json.dumps(data)).encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    return path


def image_reward_db(root: Path, *, prompts: int = 6, images: int = 3, tables: bool = False) -> Path:
    """ImageRewardDB: lossless WebP below images/, one JSON per folder or metadata tables."""
    rows = []
    for prompt in range(prompts):
        for image in range(images):
            relative = f"images/train/train_1/{prompt:04d}-{image}.webp"
            put(root / relative, image_bytes(100 * prompt + image, format="WEBP"))
            rows.append(
                {
                    "image_path": relative,
                    "prompt_id": f"{prompt:06d}-0001",
                    "prompt": f"painting of a lighthouse number {prompt}",
                    "classification": "Scenes",
                    "image_amount_in_total": images,
                    "rank": image + 1,
                    "overall_rating": 7 - image,
                    "image_text_alignment_rating": 5,
                    "fidelity_rating": 6,
                }
            )
    random.Random(0).shuffle(rows)  # rows of one prompt need not be neighbours
    if tables:
        pq.write_table(pa.Table.from_pylist(rows), root / "metadata-train.parquet")
    else:
        put(root / "images/train/train_1/train_1.json", rows)
    return root


def image_reward_repository(root: Path) -> Path:
    """The ImageReward repository's test.json, with a tie."""
    for number in range(3):
        put(root / f"part-005658/images/0040/{number}.webp", image_bytes(number, format="WEBP"))
    paths = [f"part-005658/images/0040/{number}.webp" for number in range(3)]
    put(
        root / "test.json",
        [{"id": "005658-0040", "prompt": "a cute cat", "generations": paths, "ranking": [2, 1, 2]}],
    )
    return root


def in_shop(root: Path, *, items: int = 8) -> Path:
    """DeepFashion In-shop Clothes Retrieval."""
    names = []
    for item in range(items):
        for variant, views in (("01", ("1_front", "2_side", "3_back")), ("02", ("1_front",))):
            names += [
                (f"img/WOMEN/Graphic_Tees/id_{item:08d}/{variant}_{view}.jpg", f"id_{item:08d}") for view in views
            ]
    for number, (name, _) in enumerate(names):
        put(root / "Img" / name, image_bytes(number, size=(256, 256), format="JPEG"))
    lines = [f"{name:<70} {item} {'train' if number % 2 else 'query'}" for number, (name, item) in enumerate(names)]
    put(
        root / "Eval/list_eval_partition.txt",
        "\n".join([f"{len(names)}", "image_name item_id evaluation_status", *lines]),
    )
    colours = [{"item": f"id_{item:08d}", "color": "Navy", "description": ["Soft."]} for item in range(items)]
    put(root / "Anno/list_description_inshop.json", colours)
    return root


def attributes(root: Path) -> Path:
    """DeepFashion Category and Attribute Prediction."""
    images = [f"img/Sheer_Pleated-Front_Blouse/img_{number:08d}.jpg" for number in (1, 2)]
    for number, name in enumerate(images):
        put(root / name, image_bytes(number, size=(300, 200), format="JPEG"))
    put(root / "Anno/list_category_cloth.txt", "2\ncategory_name  category_type\nAnorak         1\nBlouse         1\n")
    put(root / "Anno/list_category_img.txt", f"2\nimage_name  category_label\n{images[0]}   2\n{images[1]}   7\n")
    put(
        root / "Anno/list_attr_cloth.txt", "3\nattribute_name  attribute_type\na-line  3\nabstract print   1\nsheer 5\n"
    )
    put(
        root / "Anno/list_attr_img.txt",
        f"2\nimage_name  attribute_labels\n{images[0]}  -1  1  1\n{images[1]}  1 -1 0\n",
    )
    return root


def fashion_iq(root: Path, *, pairs: int = 4) -> Path:
    """FashionIQ: train, val and test captions of dresses."""
    for split, base in (("train", 0), ("val", 100), ("test", 200)):
        ids = [f"B{base + number:09d}" for number in range(pairs + 1)]
        for number, image_id in enumerate(ids):
            suffix, kind = ("png", "PNG") if number % 2 else ("jpg", "JPEG")
            put(root / f"images/{image_id}.{suffix}", image_bytes(base + number, size=(60, 90), format=kind))
        captions = []
        for number in range(pairs):
            entry = {"candidate": ids[number], "captions": ["is solid black", "has long sleeves."]}
            captions.append(entry if split == "test" else entry | {"target": ids[number + 1]})
        put(root / f"captions/cap.dress.{split}.json", captions)
        put(root / f"image_splits/split.dress.{split}.json", ids)
    return root


def dialogue(number: int, *, rounds: int = 3, image: str = "images/{id}-{round}.png") -> dict[str, Any]:
    """Our record of one dialogue."""
    dialogue_id = f"talk-{number:04d}"
    turns = [
        {
            "round": k,
            "user_feedback": "" if k == 1 else f"make it {'white' if k % 2 else 'black'}",
            "refined_prompt": f"a {'white' if k % 2 else 'black'} boat number {number}",
            "operation": "initial" if k == 1 else "colour",
            "target_image": {"uri": image.format(id=dialogue_id, round=k)},
        }
        for k in range(1, rounds + 1)
    ]
    return {"dialogue_id": dialogue_id, "initial_prompt": turns[0]["refined_prompt"], "theme": "sea", "turns": turns}


def dialogues(root: Path, *, count: int = 20, rounds: int = 3) -> Path:
    """One JSON file per dialogue, images beside them."""
    for number in range(count):
        record = dialogue(number, rounds=rounds)
        put(root / f"{record['dialogue_id']}.json", record)
        for k in range(1, rounds + 1):
            put(root / f"images/{record['dialogue_id']}-{k}.png", image_bytes(1000 * number + k))
    return root


def preferences(root: Path, *, count: int = 20) -> Path:
    """One JSON file of labelled pairs; every second one has its pictures the other way round."""
    records = []
    for number in range(count):
        for place in "ab":
            put(root / f"images/{number}{place}.png", image_bytes(2 * number + (place == "b")))
        labels, images = [1, 0], [f"images/{number}a.png", f"images/{number}b.png"]
        records.append(
            {
                "pair_id": f"pair-{number}",
                "prompt": f"a green house number {number}",
                "images": images[::-1] if number % 2 else images,
                "labels": labels[::-1] if number % 2 else labels,
            }
        )
    return put(root / "preferences.json", records)


def balanced(count: SourceCounts) -> bool:
    """Nothing silently gone."""
    kept = sum(count.accepted.values()) + sum(count.filtered.values())
    return count.seen == kept + count.straddles + sum(count.quarantined.values())
