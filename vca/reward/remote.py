"""Scores from a reward scorer elsewhere, over the Open Inference Protocol V2: interchangeable with `RewardScorer`.

Pictures travel as FP32, as they are, so that scores are those of the in-process scorer to float rounding.
Shape suffixes: B rows, C channels, H, W pixels.
"""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vca.errors import ArtifactError, ResourceError
from vca.reward.scorer import Scores

MODEL = "vca-reward"
_BODY = 24_000_000  # bytes of a request: below what the server takes by default
_ROWS = 256
_PATIENCE = {429, 502, 503, 504}  # it may go better later


class RemoteScorer:
    """url: where the server listens, as in http://vca-reward:8080. timeout_s: for one request.

    retries: further attempts after a request that failed for a reason that may pass, with growing pauses.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0, retries: int = 5) -> None:
        import httpx

        self.url, self.retries = url.rstrip("/"), retries
        self._client = httpx.Client(timeout=timeout_s)

    def metadata(self) -> dict[str, str]:
        """What the server says of its model: base, adapter_digest, calibration, data_watermark …"""
        found: dict[str, str] = self._ask("GET", f"/v2/models/{MODEL}").json()["properties"]
        return found

    def check(self, *, adapter_digest: str) -> None:
        """Raises ArtifactError where the server scores with another adapter than the one that was trained."""
        serving = self.metadata()["adapter_digest"]
        if serving != adapter_digest:
            raise ArtifactError(
                f"the reward scorer at {self.url} serves adapter {serving[:12]}, this run's is {adapter_digest[:12]}; "
                "let it load that one, or leave diffusion.reward_url out"
            )

    def score(self, *, prompts: list[str], images_BCHW: Tensor) -> Scores:
        """Score image i under prompt i; images float in [0, 1], of any size, without gradient.

        Raises ResourceError where the server can't be reached or refuses.
        """
        if len(prompts) != len(images_BCHW):
            raise ValueError(f"{len(prompts)} prompts for {len(images_BCHW)} images; give one prompt per image")
        if images_BCHW.requires_grad:
            raise ValueError("a remote scorer passes no gradient; score in this process")
        rows = max(1, min(_ROWS, _BODY // (4 * images_BCHW[0].numel())))
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(prompts), rows):
            found = self._score(prompts[start : start + rows], images_BCHW[start : start + rows])
            for name, values_B in found.items():
                parts.setdefault(name, []).append(values_B)
        scores = {name: torch.cat(values).to(images_BCHW.device) for name, values in parts.items()}
        return Scores(raw_B=scores.pop("raw_score"), calibrated_B=scores.pop("score"), components=scores)

    def _score(self, prompts: Sequence[str], images_BCHW: Tensor) -> dict[str, Tensor]:
        texts = [prompt.encode() for prompt in prompts]
        words = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        pixels = images_BCHW.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()
        head = json.dumps(
            {
                "inputs": [
                    _input("prompt", "BYTES", [len(texts)], words),
                    _input("image", "FP32", list(images_BCHW.shape), pixels),
                ],
                "parameters": {"components": True, "binary_data_output": True},
            }
        ).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        answer = self._ask("POST", f"/v2/models/{MODEL}/infer", content=head + words + pixels, headers=headers)
        length = int(answer.headers["inference-header-content-length"])
        found, at = {}, length
        for output in json.loads(answer.content[:length])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = torch.frombuffer(bytearray(answer.content[at : at + size]), dtype=torch.float32)
            at += size
        return found

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        """The answer with status 200. Waits as long as Retry-After says, or ever longer."""
        import httpx

        why, pause = "", 0.0
        for attempt in range(self.retries + 1):
            time.sleep(pause)
            pause = min(30.0, 0.5 * 2**attempt) * (0.5 + random.random() / 2)
            try:
                answer = self._client.request(method, self.url + path, **request)
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code == 200:
                return answer
            why = f"{answer.status_code}: {answer.text[:200]}"
            if answer.status_code not in _PATIENCE:
                break
            told = answer.headers.get("retry-after", "")
            pause = max(pause, min(30.0, float(told))) if told.isdigit() else pause
        raise ResourceError(f"the reward scorer at {self.url} gave no score ({why}); is it running and ready?")


def _input(name: str, datatype: str, shape: list[int], raw: bytes) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
