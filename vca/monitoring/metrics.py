"""Every metric of VCA: its name, its labels, what it counts. Nobody else makes one.

They go to prometheus_client's default registry, where KServe's own stand too, so that one /metrics shows both.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# From a score of a few milliseconds to a picture on a slow CPU; KServe's own histograms stop at ten seconds.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)

REQUESTS = Counter("vca_requests", "Requests by how they ended", ["model", "api", "outcome"])
REQUEST_SECONDS = Histogram(
    "vca_request_seconds", "Time from a request's arrival to its whole answer", ["model", "api"], buckets=_SECONDS
)
QUEUE_DEPTH = Gauge("vca_queue_depth", "Pictures that wait for the device", ["model"])
QUEUE_CAPACITY = Gauge("vca_queue_capacity", "Pictures that may wait for the device", ["model"])
QUEUE_SECONDS = Histogram("vca_queue_seconds", "Time a picture waits for the device", ["model"], buckets=_SECONDS)
BATCH_SIZE = Histogram(
    "vca_batch_size", "Pictures per turn of the device", ["model"], buckets=(1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
)
TURN_SECONDS = Histogram("vca_turn_seconds", "Time of one turn of the device", ["model"], buckets=_SECONDS)
PICTURES = Counter("vca_pictures", "Pictures drawn or scored", ["model", "release"])
REJECTED = Counter("vca_rejected", "Pictures refused before the device saw them", ["model", "reason"])
DEGENERATE = Counter("vca_degenerate_pictures", "Flat or broken pictures that were drawn again", ["model", "release"])
SAFETY = Counter("vca_safety", "What the safety filter said", ["model", "stage", "verdict"])
RELEASE = Gauge("vca_release_info", "1 for the release that serves", ["model", "release"])
SWAPS = Counter("vca_release_swaps", "Attempts to change the release by how they ended", ["model", "outcome"])
SCORE = Histogram(
    "vca_reward_score",
    "Calibrated scores that the reward model gave",
    ["model", "release"],
    buckets=(-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4),
)
COLD_START = Gauge("vca_cold_start_seconds", "Time from the process's start until ready, by part", ["model", "part"])
