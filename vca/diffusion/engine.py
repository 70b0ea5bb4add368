"""Who sums gradients over processes and steps the optimizer: DeepSpeed with ZeRO, or a dozen lines of PyTorch.

Both hold the LoRA alone: the base model is frozen, and DeepSpeed would refuse its bfloat16 weights beside a float32
optimizer. Losses are already divided by everything they are to be divided by; gradients are averaged over processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vca.diffusion.distributed import World
from vca.diffusion.settings import DiffusionSettings
from vca.errors import ArtifactError


class Engine(Protocol):
    """Accumulates gradients of the LoRA, and steps."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`."""

    def step(self) -> float:
        """Average over processes, clip, step at the warmed-up rate, forget the gradients. The norm before clipping."""

    def save(self, folder: Path) -> None:
        """Write what `load` needs into `folder`; every process calls it."""

    def load(self, folder: Path) -> None:
        """Go on as if never interrupted. Raises ArtifactError for a file it can't use."""


def make_engine(parameters: Mapping[str, nn.Parameter], config: DiffusionSettings, world: World) -> Engine:
    return (DeepSpeedEngine if config.engine == "deepspeed" else TorchEngine)(parameters, config, world)


def _optimizer(parameters: Mapping[str, nn.Parameter], config: DiffusionSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay
    )


def _warmed_up(optimizer: Any, config: DiffusionSettings, *, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, (step + 1) / (config.warmup + 1))


class TorchEngine:
    """One flat all-reduce, gradient clipping, AdamW."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: DiffusionSettings, world: World) -> None:
        self.parameters, self.config, self.world = dict(parameters), config, world
        self.optimizer = _optimizer(parameters, config)
        self.steps = 0

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        values = list(self.parameters.values())
        if self.world.size > 1:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in values]
            flat = self.world.total(torch.cat([gradient.flatten() for gradient in gradients])) / self.world.size
            for p, part in zip(values, torch.split(flat, [p.numel() for p in values]), strict=True):
                p.grad = part.view_as(p)
        norm = nn.utils.clip_grad_norm_(values, self.config.clip_norm)
        _warmed_up(self.optimizer, self.config, step=self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return float(norm)

    def save(self, folder: Path) -> None:
        if self.world.rank == 0:
            state = {
                "lora": {name: p.detach() for name, p in self.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
                "steps": self.steps,
            }
            torch.save(state, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        try:
            state = torch.load(folder / "engine.pt", weights_only=True, map_location=self.world.device)
        except (OSError, RuntimeError) as error:
            raise ArtifactError(f"{folder / 'engine.pt'} can't be read; remove the checkpoint {folder}") from error
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(state["lora"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


class DeepSpeedEngine:
    """DeepSpeed with a PyTorch AdamW: no kernel is compiled for the optimizer.

    ZeRO reduces in every backward pass, so all processes must make equally many, and they don't: a process whose
    dialogues start late in the window has fewer steps to train. Gradients are therefore summed here, and handed over
    once per step, as those of a loss that has them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: DiffusionSettings, world: World) -> None:
        import deepspeed

        # A kernel for all-reduce at inference only; DeepSpeed would compile it, for minutes, with g++ and ninja.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        os.environ.setdefault("LOCAL_RANK", "0")  # it insists, also where no launcher started this process
        self.config, self.world, self.steps = config, world, 0
        self.holder = nn.ParameterList(parameters.values())
        self.gradients = [torch.zeros_like(p) for p in self.holder]
        self.engine: Any = deepspeed.initialize(
            model=self.holder,
            optimizer=_optimizer(parameters, config),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": config.micro_batch,
                "managed_gradient_accumulation": False,
                "gradient_clipping": config.clip_norm,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
                "steps_per_print": 2**31,
            },
        )[0]

    def backward(self, loss: Tensor) -> None:
        for total, gradient in zip(self.gradients, torch.autograd.grad(loss, list(self.holder)), strict=True):
            total += gradient

    def step(self) -> float:
        products = [(p * total).sum() for p, total in zip(self.holder, self.gradients, strict=True)]
        self.engine.backward(torch.stack(products).sum(), scale_wrt_gas=False)
        for total in self.gradients:
            total.zero_()
        _warmed_up(self.engine.optimizer, self.config, step=self.steps)
        self.engine.step()
        self.steps += 1
        return float(self.engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag="engine", client_state={"steps": self.steps}, save_latest=False)

    def load(self, folder: Path) -> None:
        found, client = self.engine.load_checkpoint(str(folder), tag="engine")
        if found is None:
            raise ArtifactError(f"{folder / 'engine'} can't be read by DeepSpeed; remove the checkpoint {folder}")
        self.steps = client["steps"]
