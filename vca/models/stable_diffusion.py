"""Stable Diffusion, taken apart: text encoder, autoencoder and U-Net with a LoRA on its attention.

Any folder or hub id that holds a diffusers `StableDiffusionPipeline` will do, SD 1.x and 2.x at any size, epsilon or
v-prediction. Latents leave and enter in float32 whatever the networks compute in, because a log-probability of a
latent that was rounded to bfloat16 is off by more than PPO's clip range.

Shapes: B batch, C channels, H W latent or image height and width, L text tokens, D text width, T training timesteps.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vca.errors import ArtifactError
from vca.models.location import digest, resolve

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILE = "adapter.json"
_CACHED_PROMPTS = 4096
DECODED_AT_ONCE = 16


@dataclass(kw_only=True)
class StableDiffusion:
    """The parts, on one device, frozen and in eval mode. Made by `load_pipeline`.

    alphas_cumprod_T: float64, the noise schedule of training. final_alpha_cumprod: what stands after the last step (1
    where the scheduler sets it so; the last step is then deterministic). base_digest: which weights these are.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    alphas_cumprod_T: Tensor
    final_alpha_cumprod: float
    prediction_type: str
    base_digest: str
    device: torch.device
    dtype: torch.dtype
    _text_cache: OrderedDict[str, Tensor] = field(default_factory=OrderedDict, repr=False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, H, W of a latent at the size the U-Net was trained for."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def image_size(self) -> int:
        """Height of a picture, pixels."""
        return int(self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """states_BLD in the networks' dtype; a prompt is encoded once and then remembered."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text_cache]
        found = {prompt: self._text_cache[prompt] for prompt in prompts if prompt in self._text_cache}
        if new:
            tokens = self.tokenizer(
                new,
                padding="max_length",
                max_length=self.text_encoder.config.max_position_embeddings,
                truncation=True,
                return_tensors="pt",
            )
            states_BLD = self.text_encoder(tokens.input_ids.to(self.device))[0]
            found.update(zip(new, states_BLD, strict=True))
        for prompt, states_LD in found.items():
            self._text_cache[prompt] = states_LD
            self._text_cache.move_to_end(prompt)
        while len(self._text_cache) > _CACHED_PROMPTS:
            self._text_cache.popitem(last=False)
        return torch.stack([found[prompt] for prompt in prompts])

    def predict(self, latents_BCHW: Tensor, timesteps_B: Tensor, states_BLD: Tensor) -> Tensor:
        """The U-Net's output (noise or velocity, see `prediction_type`), float32."""
        # PyTorch's flash attention for CPUs is slow backward: plain attention takes a third less time per trained step.
        with sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext():
            output: Tensor = self.unet(
                latents_BCHW.to(self.dtype), timesteps_B, encoder_hidden_states=states_BLD
            ).sample
        return output.float()

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """images_BCHW float32 in [0, 1]. Keeps the graph where gradients are on.

        A few at a time: with more pictures at once the maps don't fit a processor's caches: half as long again.
        """
        parts = (latents_BCHW / self.vae.config.scaling_factor).to(self.dtype).split(DECODED_AT_ONCE)
        pixels = torch.cat([self.vae.decode(part).sample for part in parts])
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' posterior, float32 and scaled as the U-Net sees latents."""
        posterior = self.vae.encode((images_BCHW * 2 - 1).to(self.device, self.dtype)).latent_dist
        factor = self.vae.config.scaling_factor
        return posterior.mean.float() * factor, posterior.std.float() * factor

    def attach_lora(self, *, rank: int, alpha: float, seed: int = 0) -> None:
        """A fresh LoRA on every attention projection of the U-Net, in place of any other; it changes nothing yet.

        W + (alpha/rank) B A with A ~ N(0, 1/rank) and B = 0, in float32 whatever the base computes in.
        """
        from peft import LoraConfig

        if getattr(self.unet, "peft_config", None):
            self.unet.delete_adapters(list(self.unet.peft_config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.unet.add_adapter(
                LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LORA_TARGETS), init_lora_weights="gaussian")
            )
        for parameter in self.lora().values():
            parameter.data = parameter.data.float()

    def lora(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name, in a fixed order; empty where no LoRA is attached."""
        return {
            name.replace(".default.", "."): parameter
            for name, parameter in self.unet.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The base model, for as long as the context lasts."""
        layers = _lora_layers(self.unet)
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def beside(self) -> StableDiffusion:
        """A pipeline of the same weights, not copied, whose LoRA is its own: two policies can serve at once."""
        shared = [*self.unet.parameters(), *self.unet.buffers()]
        return replace(self, unet=copy.deepcopy(self.unet, {id(tensor): tensor for tensor in shared}))

    def set_scale(self, scale: float) -> None:
        """How strongly the LoRA acts: 0 is the base model, 1 what was trained."""
        for layer in _lora_layers(self.unet):
            layer.set_scale("default", scale)


def load_pipeline(
    location: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusion:
    """The Stable Diffusion pipeline at `location` (see vca.models.location), frozen.

    Raises ArtifactError where it is missing, broken, or a pipeline of another kind.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    source = resolve(location)
    index = Path(source) / "model_index.json"
    if Path(source).is_dir():
        kind = json.loads(index.read_text())["_class_name"] if index.is_file() else "no model_index.json"
        if kind != "StableDiffusionPipeline":
            raise ArtifactError(
                f"model location {location!r} holds {kind}; needed is a folder with a StableDiffusionPipeline"
            )
    try:
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=dtype)
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", torch_dtype=dtype)
        text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=dtype)
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
        scheduler = DDIMScheduler.from_pretrained(source, subfolder="scheduler")
    except Exception as error:  # the loaders raise whatever their file formats raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"the model at {location!r} can't be loaded: {first_line}; fetch it again") from error
    for part in (unet, vae, text_encoder):
        part.to(device).eval().requires_grad_(False)
    for part in (unet, vae):  # convolutions want channels last: a quarter less time on a CPU
        part.to(memory_format=torch.channels_last)
    return StableDiffusion(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        alphas_cumprod_T=scheduler.alphas_cumprod.double(),
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        prediction_type=scheduler.config.prediction_type,
        base_digest=digest(location),
        device=torch.device(device),
        dtype=dtype,
    )


def save_adapter(
    pipeline: StableDiffusion,
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    scale: float = 1.0,
) -> None:
    """Write `weights` (named as `pipeline.lora()` names them) and, last, adapter.json.

    facts: anything else worth knowing (reward digest, data watermark); `scale` is the strength to serve with.
    The file is in peft's layout: `unet.load_lora_adapter(folder, weight_name=…, prefix=None)` of diffusers takes it.
    """
    from safetensors.torch import save

    lora = pipeline.unet.peft_config["default"]
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS_FILE, content)
    card = {
        "kind": "policy",
        "base_digest": pipeline.base_digest,
        "rank": lora.r,
        "alpha": lora.lora_alpha,
        "scale": scale,
        "files": {WEIGHTS_FILE: hashlib.sha256(content).hexdigest()},
        **facts,
    }
    _replace(folder / ADAPTER_FILE, json.dumps(card, indent=2).encode())


def read_adapter(folder: Path) -> dict[str, Any]:
    """adapter.json of a policy. Raises ArtifactError where there is none or it can't be read."""
    try:
        card: dict[str, Any] = json.loads((folder / ADAPTER_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} is no finished policy adapter: {ADAPTER_FILE} is missing or broken") from error
    if card.get("kind") != "policy":
        raise ArtifactError(f"{folder} holds a {card.get('kind')} adapter; needed is a policy adapter")
    return card


def set_adapter_scale(folder: Path, *, scale: float) -> None:
    """Record the strength to serve with, chosen on validation prompts."""
    _replace(folder / ADAPTER_FILE, json.dumps(read_adapter(folder) | {"scale": scale}, indent=2).encode())


def load_adapter(pipeline: StableDiffusion, folder: Path, *, scale: float | None = None) -> dict[str, Any]:
    """Attach the LoRA in `folder` at `scale` (default: the one in its adapter.json), and return that adapter.json.

    Raises ArtifactError for another base model and for a file that is missing, changed, truncated or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    card = read_adapter(folder)
    if card["base_digest"] != pipeline.base_digest:
        raise ArtifactError(
            f"the policy adapter {folder} was trained on base {card['base_digest'][:19]}…, the loaded base is "
            f"{pipeline.base_digest[:19]}…; load that base or train again"
        )
    try:
        content = (folder / WEIGHTS_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != card["files"][WEIGHTS_FILE]:
            raise ArtifactError(
                f"{folder / WEIGHTS_FILE} is not what {ADAPTER_FILE} says (sha256); fetch or train again"
            )
        weights = load(content)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / WEIGHTS_FILE} can't be read; fetch or train again") from error
    pipeline.attach_lora(rank=card["rank"], alpha=card["alpha"])
    try:
        load_lora_weights(pipeline, weights)
    except ValueError as error:
        raise ArtifactError(f"{folder / WEIGHTS_FILE}: {error}; fetch or train again") from error
    pipeline.set_scale(card["scale"] if scale is None else scale)
    return card


def load_lora_weights(pipeline: StableDiffusion, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into the attached LoRA. Raises ValueError for other names, shapes, or values not finite."""
    lora = pipeline.lora()
    if weights.keys() != lora.keys():
        raise ValueError(f"{len(weights.keys() ^ lora.keys())} tensor names differ from the model's")
    for name, parameter in lora.items():
        if weights[name].shape != parameter.shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, needed {tuple(parameter.shape)}")
        if not weights[name].isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")
    with torch.no_grad():
        for name, parameter in lora.items():
            parameter.copy_(weights[name])


def _lora_layers(unet: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in unet.modules() if isinstance(module, LoraLayer)]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
