"""ImageReward (Xu et al., 2023): several generated images per prompt, ranked by people.

Two published layouts:

* ImageRewardDB (Hugging Face): `images/{train,validation,test}/*/*.webp`, described by
  `metadata-{train,validation,test}.parquet`, or where those are missing by the JSON array that lies in each image
  folder under the folder's name. One row per image: image_path, prompt_id, prompt, classification,
  image_amount_in_total, rank (1 is best), overall_rating, image_text_alignment_rating, fidelity_rating.
* The ImageReward repository: JSON arrays of {id, prompt, generations: [path, ...], ranking: [rank, ...]}.

Each two images of different rank are a pair (negative kind "lower_score"); the best image of a prompt is the target of
a dialogue of one round. All pictures of a prompt belong to it alone, so the prompt's id is their key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vca.data.ledger import Spool
from vca.data.sources.base import Item, PassedOver
from vca.data.sources.files import Unusable, existing_folder, field, optional, stream_array, text
from vca.data.sources.folder import FolderSource
from vca.errors import DataError
from vca.records import Dialogue, Picture, PreferencePair, Turn

COLUMNS = ["image_path", "prompt_id", "prompt", "classification", "rank"]


class ImageReward(FolderSource):
    """Pairs and one-round dialogues of ImageReward."""

    brings_pairs = True

    def read(self) -> Iterator[Item]:
        root = existing_folder(self.path, what="ImageReward")
        tables = sorted(root.glob("metadata-*.parquet"))
        folders = sorted(path for path in root.glob("images/*/*/*.json") if path.stem == path.parent.name)
        plain = sorted(root.glob("*.json"))
        if not (tables or folders or plain):
            raise DataError(
                f"ImageReward: {root} holds neither metadata-*.parquet, nor images/*/*/*.json, nor a train/test JSON"
            )
        if tables or folders:
            yield from self._grouped(root, tables or folders)
        else:
            for path in plain:
                yield from self._repository(root, path)

    def _grouped(self, root: Path, files: list[Path]) -> Iterator[Item]:
        """Image rows of one prompt may lie apart: bring them together on disk first."""
        spool = Spool(self.scratch / "image_reward.sqlite")
        for path in files:
            uri = f"{root.name}/{path.relative_to(root)}"
            rows = _table_rows(path, uri=uri) if path.suffix == ".parquet" else stream_array(path, uri=uri)
            try:
                for number, row in enumerate(rows):
                    try:
                        spool.add(text(row, "prompt_id", uri=f"{uri}[{number}]"), json.dumps(row))
                    except Unusable as error:
                        yield error.refused()
            except Unusable as error:
                yield error.refused()
        spool.index()
        for prompt_id, lines in spool.groups():
            yield from self._prompt(prompt_id, [json.loads(line) for line in lines], root=root)
        spool.close()

    def _repository(self, root: Path, path: Path) -> Iterator[Item]:
        uri = f"{root.name}/{path.name}"
        try:
            for number, entry in enumerate(stream_array(path, uri=uri)):
                where = f"{uri}[{number}]"
                try:
                    prompt_id = text(entry, "id", uri=where)
                    prompt = text(entry, "prompt", uri=where)
                    images = field(entry, "generations", list, uri=where)
                    ranks = field(entry, "ranking", list, uri=where)
                    if len(images) != len(ranks):
                        raise Unusable("wrong_label", where, f"{len(images)} generations, {len(ranks)} ranks")
                except Unusable as error:
                    yield error.refused()
                    continue
                rows = [
                    {"image_path": image, "prompt": prompt, "rank": rank}
                    for image, rank in zip(images, ranks, strict=True)
                ]
                yield from self._prompt(prompt_id, rows, root=root)
        except Unusable as error:
            yield error.refused()

    def _prompt(self, prompt_id: str, rows: list[dict[str, Any]], *, root: Path) -> Iterator[Item]:
        """The pairs of one prompt, then its dialogue."""
        dialogue_id = f"image_reward/{prompt_id}"
        if not self.chosen(dialogue_id):
            yield PassedOver(reason="outside_fraction")
            return
        ranked: list[tuple[int, Picture]] = []
        prompt = theme = ""
        for row in rows:
            uri = f"{root.name}: prompt {prompt_id}"
            try:
                prompt = text(row, "prompt", uri=uri)
                theme = optional(row, "classification", str, "", uri=uri)
                rank = field(row, "rank", int, uri=uri)
                if rank < 1:
                    raise Unusable("wrong_label", uri, f"rank {rank}; ranks start at 1")
                picture = self.picture(text(row, "image_path", uri=uri), key=dialogue_id, root=root)
            except Unusable as error:
                yield error.refused()
                continue
            ranked.append((rank, picture))
        for (rank_a, a), (rank_b, b) in combinations(ranked, 2):
            if rank_a != rank_b:
                better, worse = (a, b) if rank_a < rank_b else (b, a)
                yield PreferencePair(
                    pair_id=f"{dialogue_id}/{_stem(better)}/{_stem(worse)}",
                    prompt=prompt,
                    positive=better,
                    negative=worse,
                    source=self.name,
                    kind="lower_score",
                    negative_kind="lower_score",
                    dialogue_id=dialogue_id,
                )
        if ranked:
            best = min(ranked, key=lambda entry: entry[0])[1]
            turn = Turn(round=1, feedback="", refined_prompt=prompt, operation="initial", target=best)
            yield Dialogue(
                dialogue_id=dialogue_id,
                source=self.name,
                theme=theme,
                style=None,
                initial_prompt=prompt,
                intent=prompt,
                turns=(turn,),
            )


def _table_rows(path: Path, *, uri: str) -> Iterator[dict[str, Any]]:
    try:
        table = pq.ParquetFile(path)
        missing = [name for name in COLUMNS if name not in table.schema_arrow.names]
        if missing:
            raise Unusable("missing_field", uri, ", ".join(missing))
        for batch in table.iter_batches(batch_size=1024, columns=COLUMNS):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise Unusable("broken_file", uri, str(error)) from None


def _stem(picture: Picture) -> str:
    return PurePosixPath(picture.uri).stem
