"""Build EmojiDialog, the real data of the `local` preset: three vendors' emoji, their names and their factors.

    python scripts/build_emoji_dialog.py --output vca/data/emoji/emoji_dialog.parquet

The inputs are four npm packages, fetched with `npm pack` (node is not needed at run time; the Parquet is shipped):
Noto and Twemoji as 64x64 PNG, Fluent flat as SVG, and emojibase's official names. Apple's and Facebook's pictures,
which lie in the same packages, are never read: they carry no usable licence. `pip install resvg-py` renders the SVG.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image

PACKAGES = {
    "noto": ("emoji-datasource-google", "16.0.0"),
    "twemoji": ("emoji-datasource-twitter", "16.0.0"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "names": ("emojibase-data", "17.0.0"),
}
SIZE = 64
TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
HAIR = {"red hair": "red hair", "curly hair": "curly hair", "white hair": "white hair", "blond hair": "blond hair"}
HAIR |= {"bald": "bald", "beard": "beard"}
GENDERS = {"woman": "woman", "women": "woman", "man": "man", "men": "man", "girl": "girl", "boy": "boy"}
COLORS = ["red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "pink", "grey", "light-blue"]
COLORED_ROOTS = {"heart", "circle", "square", "book", "apple"}
SKIPPED_GROUPS = {2: "component", 9: "flag"}  # parts of emoji, and 258 pictures that no name describes


def fetch(package: str, version: str, folder: Path) -> tarfile.TarFile:
    """Open the npm package's archive; npm checks its integrity."""
    name = subprocess.run(
        ["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    return tarfile.open(folder / name.splitlines()[-1])


def read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None, name
    return member.read()


def unit_hash(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def parse(entry: dict[str, Any], base: dict[str, Any], groups: dict[str, Any]) -> dict[str, Any] | None:
    """The factors of one emoji, or None where its name does not describe one subject (two skin tones, families)."""
    label, _, rest = entry["label"].replace("light blue", "light-blue").partition(": ")
    marks = [mark for mark in rest.split(", ") if mark] if rest else []
    tones = [mark for mark in marks if mark.endswith("skin tone")]
    hair = [mark for mark in marks if mark in HAIR]
    if len(tones) > 1 or len(hair) > 1 or len(tones) + len(hair) < len(marks):
        return None
    subject = label.strip()
    direction = "right" if subject.endswith(" facing right") else None
    subject = subject.removesuffix(" facing right")
    words = subject.split()
    gender = next((GENDERS[word] for word in words if word in GENDERS), None)
    root = re.sub(r"\b(woman|man|person)\b(?!’)", "person", re.sub(r"\b(women|men|people)\b", "people", subject))
    root = re.sub(r"^person (?!with )(?=\w)", "", root)
    subgroup = groups["subgroups"][str(base["subgroup"])]
    people = base["group"] == 1
    color = words[0] if words[0] in COLORS and " ".join(words[1:]) in COLORED_ROOTS else None
    return {
        "subject": subject,
        "root": " ".join(words[1:]) if color else root,
        "group": groups["groups"][str(base["group"])],
        "subgroup": subgroup,
        "keywords": base.get("tags", []),
        "tone": tones[0].removesuffix(" skin tone") if tones else None,
        "gender": gender if people else None,
        "hair": HAIR[hair[0]] if hair else None,
        "role": root if subgroup == "person-role" else None,
        "color": color,
        "species": "cat" if subgroup == "cat-face" else "face" if subgroup.startswith("face-") else None,
        "direction": direction,
        "hexcode": entry["hexcode"].lower(),
    }


def subjects(names: tarfile.TarFile) -> list[dict[str, Any]]:
    groups = json.loads(read(names, "package/meta/groups.json"))
    rows = []
    for base in json.loads(read(names, "package/en/data.json")):
        if base.get("group") is None or base["group"] in SKIPPED_GROUPS:
            continue
        for entry in [base, *base.get("skins", [])]:
            row = parse(entry, base, groups)
            if row:
                rows.append(row)
    return rows


def assign_sides(rows: list[dict[str, Any]]) -> None:
    """Of the concepts 11 %, and of the others' combinations of attributes 18 %, are held out: about 20 % of all."""
    variants = Counter(root for root, _ in {(row["root"], combination(row)) for row in rows})
    for row in rows:
        row["held_out"] = None
        if unit_hash("root:" + row["root"]) < 0.11:
            row["held_out"] = "root"
        elif variants[row["root"]] > 2 and unit_hash("combination:" + combination(row)) < 0.18:
            row["held_out"] = "combination"


def combination(row: dict[str, Any]) -> str:
    return "|".join(str(row[name]) for name in ("subject", "tone", "hair", "direction"))


def on_white(data: bytes) -> bytes:
    """RGB, on white, as PNG: what every model of the preset sees."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    out = io.BytesIO()
    page.convert("RGB").save(out, "PNG", optimize=True)
    return out.getvalue()


def pictures(archives: dict[str, tarfile.TarFile]) -> dict[tuple[str, str], bytes]:
    """(style, code points without variation selectors) -> PNG."""
    found = {}
    for style, folder in (("noto", "google"), ("twemoji", "twitter")):
        for member in archives[style]:
            path = Path(member.name)
            if path.parent.as_posix() == f"package/img/{folder}/64" and path.suffix == ".png":
                found[style, plain(path.stem)] = on_white(read(archives[style], member.name))
    icons = json.loads(read(archives["fluent"], "package/icons.json"))
    for code, name in json.loads(read(archives["fluent"], "package/chars.json")).items():
        icon = icons["icons"].get(name)
        if icon:
            side = icons["width"]
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}">{icon["body"]}</svg>'
            found["fluent", plain(code)] = on_white(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE)))
    return found


def plain(code: str) -> str:
    """Packages differ in whether they write the variation selector."""
    return code.lower().replace("-fe0f", "")


def build(output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archives = {name: fetch(package, version, Path(folder)) for name, (package, version) in PACKAGES.items()}
        rows = subjects(archives["names"])
        assign_sides(rows)
        drawn = pictures(archives)
    items = []
    for row in rows:
        for style in ("noto", "twemoji", "fluent"):
            png = drawn.get((style, plain(row["hexcode"])))
            if png:
                item_id = f"{style}/{plain(row['hexcode'])}"
                fold = "judge" if unit_hash("fold:" + item_id) < 0.4 else "reward"
                items.append({"item_id": item_id, "style": style, **row, "fold": fold, "png": png})
    items = list({item["item_id"]: item for item in items}.values())
    items.sort(key=lambda item: str(item["item_id"]))
    metadata = {"packages": json.dumps({name: "@".join(package) for name, package in PACKAGES.items()})}
    table = pa.Table.from_pylist(items).replace_schema_metadata(metadata)
    pq.write_table(table, output, compression="zstd", compression_level=19, row_group_size=2048)
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    output.with_suffix(".sha256").write_text(f"{digest}  {output.name}\n")
    sides = Counter((item["style"], item["held_out"]) for item in items)
    print(f"{len(items)} pictures, {len({item['root'] for item in items})} concepts, {dict(sides)}")
    print(f"{output} {output.stat().st_size / 1e6:.1f} MB {digest}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    build(parser.parse_args().output)
