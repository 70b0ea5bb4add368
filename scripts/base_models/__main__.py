"""`make base-models`: train the local preset's three base models, one after the other, each in its own process.

After Stable Diffusion the pictures that the simulated people see of it are drawn anew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from vca.models.location import SHIPPED

MODELS = ("stable_diffusion", "qwen_vl", "judge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"which of {MODELS}; all by default")
    given = parser.parse_args()
    for name in given.models or MODELS:
        _run(f"scripts.base_models.{name}", "--output", str(SHIPPED / name))
        if name == "stable_diffusion":
            _run("scripts.draw_base_pictures")


def _run(module: str, *arguments: str) -> None:
    print("$ python -m", module, *arguments, flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
