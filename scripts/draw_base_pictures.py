"""Draw with the shipped Stable Diffusion what the simulated people see of it: two pictures per item of the reward fold.

A picture is drawn for the item's whole caption, drawing style included, as training draws (few steps, noise in all
of them, no guidance). Only the train side's pictures are drawn. A changed base model needs this run again.

python -m scripts.draw_base_pictures
"""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from vca.data.emoji.catalogue import DRAWN, EmojiItem, caption, load_catalogue
from vca.data.emoji.source import sides
from vca.diffusion.sampler import generate
from vca.models.stable_diffusion import StableDiffusion, load_pipeline
from vca.progress import Plain

BASE = "package:stable_diffusion"
VIEWS, STEPS, BATCH, QUALITY = 2, 5, 64, 85


def pictures(pipeline: StableDiffusion, items: list[EmojiItem], *, view: int) -> list[bytes]:
    """One WebP per item; its noise comes from the item's id and the view's number alone."""
    seeds = [int.from_bytes(hashlib.sha256(f"{item.item_id} {view}".encode()).digest()[:7]) for item in items]
    images_BCHW = generate(
        pipeline,
        prompts=[caption(item, style=True) for item in items],
        steps=STEPS,
        guidance=1.0,
        eta=1.0,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images_BCHW
    found = []
    for pixels_HWC in (images_BCHW * 255).round().byte().permute(0, 2, 3, 1).numpy():
        out = io.BytesIO()
        Image.fromarray(pixels_HWC).save(out, "WEBP", quality=QUALITY, method=6)
        found.append(out.getvalue())
    return found


def main() -> None:
    pipeline = load_pipeline(BASE)
    train, validation, _ = sides(load_catalogue())
    items = [item for item in train + validation if item.fold == "reward"]
    views: dict[str, list[bytes]] = {item.item_id: [] for item in items}
    with Plain().task("drawing", VIEWS * len(items), "pictures") as task:
        for view in range(VIEWS):
            for at in range(0, len(items), BATCH):
                part = items[at : at + BATCH]
                for item, webp in zip(part, pictures(pipeline, part, view=view), strict=True):
                    views[item.item_id].append(webp)
                task.advance(len(part))
    rows = [{"item_id": item_id, "webp": views[item_id]} for item_id in sorted(views)]
    metadata = {"base": pipeline.base_digest, "catalogue": load_catalogue().sha256}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), DRAWN, compression="none")
    digest = hashlib.sha256(DRAWN.read_bytes()).hexdigest()
    DRAWN.with_suffix(".sha256").write_text(f"{digest}  {DRAWN.name}\n")
    print(f"{VIEWS * len(rows)} pictures, {DRAWN} {DRAWN.stat().st_size / 1e6:.1f} MB {digest}")


if __name__ == "__main__":
    main()
