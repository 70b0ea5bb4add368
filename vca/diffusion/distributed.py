"""The processes that train together, as torchrun starts them; alone, everything here is a no-op."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's rank among `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def largest(self, tensor: Tensor) -> Tensor:
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, on all of them."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def _reduced(self, tensor: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        tensor = tensor.clone()
        if self.size > 1:
            dist.all_reduce(tensor, op=how)
        return tensor


def join(*, group_needed: bool) -> World:
    """Join the group that torchrun describes in the environment; alone, make one only where it is needed."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if (size > 1 or group_needed) and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = torch.distributed.HashStore() if size == 1 else None  # type: ignore[attr-defined]
        dist.init_process_group(backend, rank=rank, world_size=size, store=store, timeout=timedelta(minutes=30))
    return World(rank=rank, size=size, device=device)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
