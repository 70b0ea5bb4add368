"""Draw what docs/data.md shows: some dialogues of EmojiDialog as picture strips, and some preference pairs.

python scripts/draw_emoji_dialogs.py --output docs/images
"""

from __future__ import annotations

import argparse
import io
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vca.data.emoji.settings import EmojiSettings
from vca.data.emoji.source import EmojiSource
from vca.records import Dialogue, Picture, PreferencePair

SIDE, GAP, TEXT = 112, 14, 64  # px: a picture, the space between two, the words below one
FONT = ImageFont.load_default(size=12)


def strip(cells: list[tuple[Picture, str]]) -> Image.Image:
    """Pictures in a row, each with its words below."""
    page = Image.new("RGB", (len(cells) * (SIDE + GAP) + GAP, SIDE + TEXT + GAP), "white")
    pen = ImageDraw.Draw(page)
    for n, (picture, words) in enumerate(cells):
        left = GAP + n * (SIDE + GAP)
        image = Image.open(io.BytesIO(picture.data)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        page.paste(image, (left, GAP))
        pen.multiline_text((left, GAP + SIDE + 4), textwrap.fill(words, 18), fill="black", font=FONT, spacing=2)
    return page


def stack(rows: list[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def dialogue_row(dialogue: Dialogue) -> Image.Image:
    cells = [(turn.target, turn.feedback or turn.refined_prompt) for turn in dialogue.turns]
    return strip([(target, words if n == 0 else f"“{words}”") for n, (target, words) in enumerate(cells) if target])


def pair_row(pair: PreferencePair) -> Image.Image:
    return strip([(pair.positive, f"{pair.kind}: {pair.prompt}"), (pair.negative, "(not preferred)")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    records = list(EmojiSource(settings=EmojiSettings(), seed=0).read())
    shown: dict[str, Dialogue] = {}
    examples: dict[str, PreferencePair] = {}
    for record in records:
        if isinstance(record, PreferencePair):
            if record.role == "test":  # judged without mistakes
                examples.setdefault(record.kind, record)
        elif record.role == "diffusion" and len(record.turns) == 6 and len({t.operation for t in record.turns}) > 2:
            shown.setdefault(record.theme, record)
    output.mkdir(parents=True, exist_ok=True)
    stack([dialogue_row(dialogue) for dialogue in list(shown.values())[:4]]).save(output / "emoji-dialogues.png")
    rows = [pair_row(examples[kind]) for kind in sorted(examples)]
    columns = [stack(rows[n::3]) for n in range(3)]
    page = Image.new("RGB", (sum(c.width for c in columns), max(c.height for c in columns)), "white")
    for n, column in enumerate(columns):
        page.paste(column, (n * columns[0].width, 0))
    page.save(output / "emoji-pairs.png")


if __name__ == "__main__":
    main()
