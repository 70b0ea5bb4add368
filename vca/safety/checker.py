"""The filter itself: it fails closed, and it never takes its own failure for a picture's fault."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vca.errors import ArtifactError
from vca.safety.classifiers import Classifier, OpenNsfw, Pixels, StableDiffusion
from vca.safety.settings import SafetySettings
from vca.safety.words import SHIPPED, WordList

HIDDEN = "hidden by the safety filter"
UNCHECKED = "could not be checked"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """reason: why not, None where it may be shown; "unknown" is a failure of the filter. score: the classifier's."""

    reason: Literal["blocked_prompt", "blocked_image", "unknown"] | None
    score: float | None = None

    @property
    def allowed(self) -> bool:
        return self.reason is None

    @property
    def message(self) -> str | None:
        """What a person is told; None where there is nothing to tell."""
        if self.reason is None:
            return None
        return UNCHECKED if self.reason == "unknown" else HIDDEN


class Checker:
    """Judges prompts and pictures. Threads may share one. No check raises: what goes wrong is logged, and "unknown"."""

    def __init__(self, *, words: WordList, classifier: Classifier | None) -> None:
        """classifier: None lets every picture pass, for development."""
        self._words = words
        self._classifier = classifier

    def check_prompt(self, text: str) -> Verdict:
        """The text that the generator would get, that is, after refinement."""
        try:
            return Verdict(reason="blocked_prompt" if self._words.blocks(text) else None)
        except Exception:
            _log.exception("a prompt could not be checked")
            return Verdict(reason="unknown")

    def check_images(self, images: Sequence[Pixels]) -> list[Verdict]:
        """One verdict for each picture, [H, W, 3] uint8 RGB, any size. A failure is every picture's of the call."""
        if self._classifier is None:
            return [Verdict(reason=None) for _ in images]
        try:
            if not all(map(_is_picture, images)):
                raise ValueError("pictures must be [H, W, 3] uint8, with pixels in them")
            scores = [float(score) for score in self._classifier.scores(images)]
            if len(scores) != len(images) or not all(map(math.isfinite, scores)):
                raise ValueError(f"the classifier gave {scores} for {len(images)} pictures")
            limit = self._classifier.threshold
            return [Verdict(reason="blocked_image" if score > limit else None, score=score) for score in scores]
        except Exception:
            _log.exception("pictures could not be checked")
            return [Verdict(reason="unknown") for _ in images]


def load(settings: SafetySettings) -> Checker:
    """The filter that `settings` describe, tried on one picture.

    Errors: ArtifactError where a word list or a classifier's weights are missing, damaged, or give no judgement.
    """
    words = WordList(settings.blocked_words or SHIPPED)
    try:
        checker = Checker(words=words, classifier=_classifier(settings))
    except Exception as error:  # the loaders raise whatever their file formats raise
        first_line = next(iter(str(error).splitlines()), "")
        place = settings.location or "the extra `serve`"
        raise ArtifactError(
            f"safety classifier {settings.classifier!r} can't be loaded ({type(error).__name__}: {first_line}); "
            f"install or fetch {place} again, or choose another classifier"
        ) from error
    grey = np.full((64, 64, 3), 128, np.uint8)
    if checker.check_images([grey])[0].reason == "unknown":
        raise ArtifactError(
            f"safety classifier {settings.classifier!r} gives no judgement of a grey picture (see the log); "
            "fetch its weights again, or choose another classifier"
        )
    return checker


def _is_picture(image: Pixels) -> bool:
    # A network takes floats too, as a nearly black picture, and finds nothing in it.
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def _classifier(settings: SafetySettings) -> Classifier | None:
    if settings.classifier == "none":
        return None
    if settings.classifier == "open_nsfw":
        return OpenNsfw(threshold=settings.image_threshold)
    return StableDiffusion(location=settings.location or "")
