"""Training curves as small SVGs that take their colours and fonts from the page they stand in."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

INK, LINE, BASE, TRAINED = "#010203", "#010204", "#010205", "#010206"  # replaced by the page's own colours
_VARIABLES = {INK: "currentColor", LINE: "var(--line)", BASE: "var(--base)", TRAINED: "var(--trained)"}


def smooth(values: Sequence[float], *, window: int) -> list[float]:
    """Mean over the last `window` values, fewer at the start."""
    return [
        sum(values[max(0, at - window + 1) : at + 1]) / (at + 1 - max(0, at - window + 1)) for at in range(len(values))
    ]


def curve(values: Sequence[float], *, name: str, description: str, unit: str, level: float | None = None) -> str:
    """One curve: every value faint, a running mean strong; `level` draws a dashed reference. Inline SVG text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(3.6, 2.0), layout="constrained")
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, color=TRAINED, linewidth=0.8, alpha=0.35)
        axes.plot(steps, smooth(values, window=max(1, len(values) // 12)), color=TRAINED, linewidth=2)
        if level is not None:
            axes.axhline(level, color=BASE, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(unit, color=INK)
        axes.tick_params(colors=INK, length=0)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.margins(x=0.01)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{name}: {description}"', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
