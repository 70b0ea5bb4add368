"""Why the store says no. What each means over HTTP is the studio's to say."""

from __future__ import annotations

from vca.errors import VcaError


class StoreError(VcaError):
    """Something that was asked of the store and can't be."""


class NotFound(StoreError):
    """It doesn't exist, or it is somebody else's: from outside the two look alike."""


class Conflict(StoreError):
    """The id is taken by something else, or the state has moved on."""


class Unacceptable(StoreError):
    """What was sent can't be, whoever sends it: a picture that was not shown, a text too long."""


class StoreDown(StoreError):
    """Database or picture store can't be reached or written; what was sent is not stored. Try again."""

    exit_code = 5
