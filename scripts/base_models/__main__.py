"""`make base-models`: train the local preset's three base models, one after the other, each in its own process."""

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
        command = [sys.executable, "-m", f"scripts.base_models.{name}", "--output", str(SHIPPED / name)]
        print("$", " ".join(command[1:]), flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
