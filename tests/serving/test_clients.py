"""The client guide's snippets, each in a process of its own, with clients that nobody here wrote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving_process import ROOT, Running

GUIDE = (ROOT / "docs" / "clients.md").read_text()
PARTS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)
SNIPPETS = {
    title: (language, "\n".join(code for found, code in blocks if found == language))
    for title, text in PARTS
    if (blocks := re.findall(r"```(python|bash)\n(.*?)```", text, re.S))
    for language in [blocks[0][0]]
}
SAYS = {
    "curl": r'\{"predictions":\[\{"score":-?\d',
    "OpenAI's SDK": r"blue heart\n(image_generation\.partial_image\n){2}image_generation\.completed\n",
    "KServe's clients": r"pictures: \[2\]\nscores: \[-?\d.* -?\d",
    "tritonclient, HTTP": r"score: -?\d",
    "tritonclient, gRPC": r"score: -?\d",
}


def test_every_part_of_the_guide_is_run() -> None:
    assert SNIPPETS.keys() == SAYS.keys()


@pytest.mark.parametrize("title", SAYS)
def test_a_snippet_of_the_guide_does_what_it_says(
    title: str, generator: Running, scorer: Running, tmp_path: Path
) -> None:
    language, code = SNIPPETS[title]
    for port, real in ((8080, generator.http), (8081, generator.grpc), (8082, scorer.http), (8083, scorer.grpc)):
        code = code.replace(f"127.0.0.1:{port}", f"127.0.0.1:{real}")
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(SAYS[title], done.stdout), done.stdout
    if title == "curl":
        second = json.loads((tmp_path / "second.json").read_text())
        assert (second["round"], second["data"][0]["revised_prompt"]) == (2, "blue heart")
