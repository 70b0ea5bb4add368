"""What a data source is: an iterator over records, one at a time, that never stops for a bad one.

A source knows one on-disk layout and nothing else. Preparation (`vca.data.prepare`) does the rest for every source
alike: it decodes and checks the pictures, filters, finds duplicate ids, splits, gives out roles, makes negatives from
dialogues, counts and writes. Whatever a source yields counts as one record *seen*, and

    seen = accepted + filtered + straddles + quarantined

holds for each source: nothing is silently gone.

How to write one:

* Yield a `Dialogue` or a `PreferencePair` (`vca.records`) for each good record. Pictures carry their encoded bytes;
  give the same picture the same `uri` everywhere, since checked pictures are cached by it.
* Yield `Refused` where a record can't be read (missing file, missing field, wrong label, ...) and go on with the next.
  It is quarantined with its place and reason. A picture's bytes need no check here, preparation decodes them.
* Yield `PassedOver` where a record is fine but not wanted. It is counted as filtered, not as bad.
* Raise `vca.errors.DataError` only where there is nothing to read at all: no such folder, not one annotation file.
* Hold no more than one record (or one small group, such as the images of one prompt) in memory.
* Always in the same order for the same files and settings: sort what the file system lists.

Split and role. By default preparation splits by hash (`vca.data.splits`): a record is on a side only if all its keys
are, i.e. its `dialogue_id` (or `pair_id`) and each `Picture.key`. So give pictures the coarsest identity that is
theirs, and the dialogue's own id where a picture belongs to that dialogue alone, or most records will straddle and be
dropped. A source whose keys are already grouped sets `declares_split = True` and fills in `split`; preparation then
keeps it, but still drops a record that brings a key to the other side. With `declares_role = True` the source fills in
`role` too ("reward" or "validation" for pairs, "diffusion" or "validation" for dialogues, "test" for both on the test
side, "unused" to leave out); otherwise the role comes from the hash of the dialogue's id.

Which records become files: pairs in the roles reward, validation, test; dialogues in diffusion, validation, test.
`make_negatives` says whether preparation should also derive pairs (edited prompt, opposite prompt, random mismatch)
from this source's dialogues; a source that brings pairs of its own sets it to False.

Settings. A source has a small pydantic model with its `kind` as a literal, a `name`, and whatever it needs, collected
in `vca.data.settings.SourceSettings`; `vca.data.prepare.open_source` turns one into the source. EmojiDialog's are
`vca.data.settings.EmojiDialogSettings` (its `kind` and `name` added to `vca.data.emoji.settings.EmojiSettings`) and
`vca.data.emoji.source.EmojiSource(settings, *, seed)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from vca.records import Dialogue, PreferencePair

Reason = Literal[
    "broken_file",
    "broken_image",
    "duplicate_id",
    "empty_text",
    "image_too_large",
    "invalid_json",
    "invalid_line",
    "missing_field",
    "missing_file",
    "outside_folder",
    "wrong_label",
    "wrong_split",
    "wrong_type",
]


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A record that cannot be used. `uri`: the file (and place in it); `detail`: what was found there, in words."""

    reason: Reason
    uri: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """A good record that the settings leave out, by a filter of the source's own. `reason` is counted as a filter."""

    reason: str


Item = Dialogue | PreferencePair | Refused | PassedOver


class Source(Protocol):
    """One data set. `name` is what counts and reports call it, and every record's `source`.

    people: how many real people's judgements it holds; 0 where nobody was asked, or nobody counted them.
    """

    name: str
    declares_split: bool
    declares_role: bool
    make_negatives: bool
    people: int

    def total(self) -> int | None:
        """How many items `read` will yield, for the ETA; None where that can't be known cheaply."""

    def watermark(self) -> str:
        """What state of the data this is: a digest of fixed files, the newest event's time of growing ones."""

    def read(self) -> Iterator[Item]:
        """Every record in a fixed order, good or not."""
