"""Which good records are left out: too many words of style; pictures too small or blurred to learn from, or unsafe."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from vca.data.images import MAX_PIXELS, Stored, open_rgb
from vca.safety.checker import Checker, load
from vca.safety.settings import SafetySettings

# Words that say how a picture should look and nothing of what it shows, as prompt writers pile them up.
STYLE_KEYWORDS = (
    "4k", "8k", "16k", "hd", "hdr", "uhd", "3d render", "award winning", "anime style", "art by", "art deco",
    "art nouveau", "artstation", "baroque", "bokeh", "cgi", "cgsociety", "chiaroscuro", "cinematic", "comic style",
    "concept art", "cyberpunk", "depth of field", "detailed", "deviantart", "digital art", "digital painting", "dslr",
    "elegant", "epic", "fantasy art", "film grain", "global illumination", "greg rutkowski", "highly detailed",
    "hyperrealistic", "illustration", "impressionist", "in the style of", "insanely detailed", "intricate",
    "masterpiece", "matte painting", "octane render", "oil painting", "pastel", "photorealistic", "pixel art",
    "pixiv", "pop art", "ray tracing", "sharp focus", "smooth", "steampunk", "studio ghibli", "studio lighting",
    "surrealism", "symmetrical", "trending on", "ultra detailed", "ultra realistic", "unreal engine", "vaporwave",
    "volumetric lighting", "watercolor", "wlop", "alphonse mucha", "artgerm",
)  # fmt: skip


class StyleFilter:
    """Counts the different style keywords of a prompt; words inside longer keywords count once."""

    def __init__(self, *, keywords: Iterable[str] = STYLE_KEYWORDS, limit: int) -> None:
        longest_first = sorted(keywords, key=len, reverse=True)
        self.limit = limit
        self.pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")

    def excessive(self, prompt: str) -> bool:
        """True for `limit` or more different keywords."""
        text = re.sub(r"(\d) k\b", r"\1k", prompt.lower())  # "8 k", as tokenised prompts have it
        return len(set(self.pattern.findall(text))) >= self.limit


def unclear(picture: Stored, *, min_side: int, min_sharpness: float) -> str | None:
    """Why the picture is no use, or None. min_side in px of the original, min_sharpness as `Stored.sharpness`."""
    if picture.source_side < min_side:
        return "small_image"
    return "unclear_image" if picture.sharpness < min_sharpness else None


def open_checker(threshold: float) -> Checker:
    """The safety filter with open_nsfw at this probability. Errors: ArtifactError where the network is missing."""
    return load(SafetySettings(classifier="open_nsfw", image_threshold=threshold))


def unsafe(picture: Stored, *, checker: Checker) -> str | None:
    """Why the picture is left out, or None. One that could not be checked is left out too, under its own name."""
    pixels = np.asarray(open_rgb(picture.data, max_pixels=MAX_PIXELS).image)
    reason = checker.check_images([pixels])[0].reason
    return {"blocked_image": "unsafe_image", "unknown": "unchecked_image"}.get(reason or "")
