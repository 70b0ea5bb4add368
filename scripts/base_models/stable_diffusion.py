"""Train the local preset's small Stable Diffusion: an autoencoder, a text encoder and a U-Net, on EmojiDialog.

    python scripts/base_models/stable_diffusion.py --output vca/models/base/stable_diffusion

Real diffusers and transformers classes in small sizes, so that the code that loads, adapts and serves them is the code
that runs on SD 2.1. Only train-side pictures are seen: held-out concepts and combinations stay held out. Half of the
captions leave the drawing style open, so that the model draws a mixture of styles there; the other half name it.
Each phase is resumable: its result is kept in the work folder.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vca.data.emoji.catalogue import Catalogue, EmojiItem, caption, load_catalogue

LATENT_CHANNELS = 12
TOKENS = 32  # twice the longest caption: the text encoder is a fifth of a training step even so
VOCABULARY = 4096
BATCH = 64
RATE = 1.2e-3  # peak of a cosine schedule


def images_of(items: list[EmojiItem]) -> Tensor:
    """uint8 [N,3,64,64]."""
    arrays = [np.asarray(Image.open(io.BytesIO(item.png)).convert("RGB")) for item in items]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` index batches over shuffled epochs."""
    stream: Iterator[Tensor] = itertools.chain.from_iterable(
        torch.randperm(count, generator=generator).split(size) for _ in itertools.count()
    )
    return itertools.islice((batch for batch in stream if len(batch) == size), steps)


def cosine(step: int, steps: int, warmup: int) -> float:
    return min((step + 1) / warmup, 1.0) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))) + 1e-3


class Log:
    """A line every few seconds: step, loss, CPU seconds."""

    def __init__(self, phase: str, steps: int) -> None:
        self.phase, self.steps, self.start, self.last, self.mean = phase, steps, time.process_time(), 0.0, 0.0

    def __call__(self, step: int, loss: float) -> None:
        self.mean = loss if step == 0 else 0.98 * self.mean + 0.02 * loss
        seconds = time.process_time() - self.start
        if seconds - self.last > 15 or step + 1 == self.steps:
            self.last = seconds
            print(f"{self.phase} {step + 1}/{self.steps} loss {self.mean:.4f} cpu {seconds:.0f}s", flush=True)


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def edges(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return images_BCHW.diff(dim=-1), images_BCHW.diff(dim=-2)


def reconstruction_loss(output_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """L1 on pixels and on edges; the second keeps outlines sharp where a perceptual net would be used at scale."""
    loss = F.l1_loss(output_BCHW, images_BCHW)
    for ours, theirs in zip(edges(output_BCHW), edges(images_BCHW), strict=True):
        loss = loss + F.l1_loss(ours, theirs)
    return loss


def train_autoencoder(images: Tensor, *, steps: int, seed: int) -> AutoencoderKL:
    """Autoencoder on train-side pictures (and their mirror images), then its latent scale."""
    torch.manual_seed(seed)
    vae = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, 50))
    generator, log = torch.Generator().manual_seed(seed), Log("autoencoder", steps)
    for step, index in enumerate(batches(len(images), 16, steps, generator)):
        batch_BCHW = images[index].float() / 127.5 - 1
        if step % 2:
            batch_BCHW = batch_BCHW.flip(-1)
        batch_BCHW = batch_BCHW.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch_BCHW).latent_dist
            output_BCHW = vae.decode(posterior.sample(generator=generator)).sample
        divergence = (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = reconstruction_loss(output_BCHW.float(), batch_BCHW) + 1e-4 * divergence
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log(step, loss.item())
    with torch.no_grad():
        sample = torch.cat([vae.encode(b.float() / 127.5 - 1).latent_dist.mean for b in images[:512].split(64)])
    vae.register_to_config(scaling_factor=round(1 / float(sample.std()), 4))
    return vae.eval()


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """dB, mean over pictures."""
    values = []
    for part in images.split(64):
        target = part.float() / 127.5 - 1
        output = vae.decode(vae.encode(target).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(((output - target) / 2).square().mean((1, 2, 3))))
    return float(torch.cat(values).mean())


def new_tokenizer(catalogue: Catalogue, folder: Path) -> CLIPTokenizer:
    """CLIP's byte-pair encoding, learnt on the captions' words."""
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=None))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [caption(item, style=True) for item in catalogue.items] + [
        " ".join(item.keywords) for item in catalogue.items
    ]
    words.train_from_iterator(texts, trainer)
    learnt = json.loads(words.to_str())["model"]
    vocab = dict(learnt["vocab"])
    for byte in pre_tokenizers.ByteLevel.alphabet():
        vocab.setdefault(byte + "</w>", len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),  # text at the lower level only: 1.7 times as fast
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 160),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=128,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """SD 2.1's schedule with its v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def captions_of(items: list[EmojiItem]) -> list[tuple[str, str]]:
    """For each picture its caption with the style left open, and with the style named."""
    return [(caption(item, style=False), caption(item, style=True)) for item in items]


def balance(items: list[EmojiItem]) -> Tensor:
    """Sampling weights: people are three fifths of the pictures; weigh concepts by the root of their size."""
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.root] = sizes.get(item.root, 0) + 1
    return torch.tensor([sizes[item.root] ** -0.35 for item in items])


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    return tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


class Averages:
    """Exponential moving averages of parameters, and a way to look through them."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = [parameter.detach().clone() for parameter in parameters]

    def update(self, step: int) -> None:
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)


def train_unet(
    latents: tuple[Tensor, Tensor],
    items: list[EmojiItem],
    tokenizer: CLIPTokenizer,
    *,
    seconds: float,
    seed: int,
    keep: Path,
) -> tuple[UNet2DConditionModel, CLIPTextModel, dict[str, Any]]:
    """Text encoder and U-Net together, for `seconds` of CPU; the weights returned are the exponential averages.

    latents: mean and standard deviation of each picture's posterior, already scaled. v-prediction with min-SNR
    weights (Hang et al. 2023, gamma 5); one caption in ten is empty, so that guidance works.
    """
    torch.manual_seed(seed)
    unet, text_encoder, scheduler = new_unet(), new_text_encoder(tokenizer), new_scheduler()
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    averages = Averages(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    tokens_open, tokens_named = (tokenise(tokenizer, list(texts)) for texts in zip(*captions_of(items), strict=True))
    tokens_null = tokenise(tokenizer, [""])
    weights, generator = balance(items), torch.Generator().manual_seed(seed)
    alphas, (mean, std) = scheduler.alphas_cumprod, latents
    start, step, recent, log = time.process_time(), 0, 0.0, Log("unet", 10**9)
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 200, 1.0) * (0.5 * (1 + math.cos(math.pi * spent / seconds)) + 0.01)
        index = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        clean_BCHW = mean[index] + std[index] * torch.randn(mean[index].shape, generator=generator)
        noise_BCHW = torch.randn(clean_BCHW.shape, generator=generator)
        times_B = torch.randint(0, 1000, (BATCH,), generator=generator)
        alpha_B111 = alphas[times_B].view(-1, 1, 1, 1)
        noisy_BCHW = alpha_B111.sqrt() * clean_BCHW + (1 - alpha_B111).sqrt() * noise_BCHW
        target_BCHW = alpha_B111.sqrt() * noise_BCHW - (1 - alpha_B111).sqrt() * clean_BCHW
        draw = torch.rand(BATCH, generator=generator)
        tokens_BL = torch.where((draw < 0.5)[:, None], tokens_open[index], tokens_named[index])
        tokens_BL = torch.where((draw > 0.9)[:, None], tokens_null, tokens_BL)
        with torch.autocast("cpu", torch.bfloat16):
            states_BLD = text_encoder(tokens_BL).last_hidden_state
            output_BCHW = unet(noisy_BCHW, times_B, states_BLD).sample
        snr_B = alphas[times_B] / (1 - alphas[times_B])
        weight_B = snr_B.clamp(max=5) / (snr_B + 1)
        loss = (weight_B * (output_BCHW.float() - target_BCHW).square().mean((1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        averages.update(step)
        recent = loss.item() if step == 0 else 0.998 * recent + 0.002 * loss.item()
        log(step, loss.item())
        step += 1
        if step % 1000 == 0:
            averages.swap()
            unet.save_pretrained(keep / "unet")
            text_encoder.save_pretrained(keep / "text_encoder")
            averages.swap()
    averages.swap()
    return unet.eval(), text_encoder.eval(), {"steps": step, "samples": step * BATCH, "loss": round(recent, 4)}


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled posterior mean and standard deviation of each picture."""
    posteriors = [vae.encode(part.float() / 127.5 - 1).latent_dist for part in images.split(64)]
    scale = vae.config.scaling_factor
    return torch.cat([p.mean for p in posteriors]) * scale, torch.cat([p.std for p in posteriors]) * scale


def refine_decoder(vae: AutoencoderKL, images: Tensor, *, seconds: float, seed: int) -> None:
    """More training for the decoder alone: the encoder, and with it every latent the U-Net learnt from, stays."""
    vae.encoder.requires_grad_(False)
    parameters = list(vae.decoder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    averages = Averages(parameters)
    generator, log, start = torch.Generator().manual_seed(seed), Log("decoder", 10**9), time.process_time()
    for step, index in enumerate(batches(len(images), 16, 10**9, generator)):
        spent = time.process_time() - start
        if spent > seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (0.5 * (1 + math.cos(math.pi * spent / seconds)) + 0.01)
        batch_BCHW = (images[index].float() / 127.5 - 1).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents_BCHW = vae.encode(batch_BCHW).latent_dist.sample(generator=generator)
            output_BCHW = vae.decode(latents_BCHW).sample
        loss = reconstruction_loss(output_BCHW.float(), batch_BCHW)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        averages.update(step)
        log(step, loss.item())
    averages.swap()


def card(facts: dict[str, Any]) -> str:
    return f"""# Small Stable Diffusion for EmojiDialog

The base model of VCA's `local` preset: a `StableDiffusionPipeline` of real diffusers classes in small sizes, so that
everything that loads, adapts and serves SD 2.1 runs on a laptop CPU. It draws 64x64 emoji from captions.

| part | class | parameters |
|---|---|---|
| autoencoder, 64x64x3 to 8x8x{LATENT_CHANNELS} | `AutoencoderKL` | {facts["parameters"]["vae"]:,} |
| text encoder, {TOKENS} tokens | `CLIPTextModel` | {facts["parameters"]["text_encoder"]:,} |
| U-Net, v-prediction | `UNet2DConditionModel` | {facts["parameters"]["unet"]:,} |

**Trained by** `scripts/base_models/stable_diffusion.py` (`make base-models`), one CPU thread.
Autoencoder: {facts["autoencoder_steps"]} steps of 16, then {facts["decoder_seconds"]} CPU seconds of decoder alone.
U-Net and text encoder: {facts["unet"]["steps"]} steps of {BATCH}, {facts["unet_seconds"]} CPU seconds,
last mean loss {facts["unet"]["loss"]}.
**From** the {facts["pictures"]} train-side pictures of EmojiDialog (see its NOTICE.md); held-out concepts and
combinations were never shown. Half of the captions name the drawing style, the others leave it open.
**How good**: the autoencoder reconstructs train pictures at {facts["psnr_train"]} dB and held-out ones at
{facts["psnr_test"]} dB. It knows people, faces and hands well, things that occur once badly, and nothing it has not
been shown. It is a teaching-size model: nobody should use it for anything but this preset and tests.
**Licence**: Apache-2.0; the pictures' licences stand in EmojiDialog's NOTICE.md.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/base_models"), help="keeps each phase's result")
    parser.add_argument("--autoencoder-steps", type=int, default=1500)
    parser.add_argument("--decoder-seconds", type=float, default=600)
    parser.add_argument("--unet-seconds", type=float, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    catalogue = load_catalogue()
    items = [item for item in catalogue.items if item.split == "train"]
    images = images_of(items)
    held_out = images_of([item for item in catalogue.items if item.split == "test"][::5])

    if not (options.work / "vae").exists():
        train_autoencoder(images, steps=options.autoencoder_steps, seed=options.seed).save_pretrained(
            options.work / "vae"
        )
    vae = AutoencoderKL.from_pretrained(options.work / "vae").eval()
    tokenizer = new_tokenizer(catalogue, options.work / "tokenizer")
    unet, text_encoder, unet_facts = train_unet(
        encode(vae, images), items, tokenizer, seconds=options.unet_seconds, seed=options.seed, keep=options.work
    )
    refine_decoder(vae, images, seconds=options.decoder_seconds, seed=options.seed)
    save(options, vae.eval(), text_encoder, tokenizer, unet, unet_facts, images, held_out)


def save(
    options: argparse.Namespace,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    unet_facts: dict[str, Any],
    images: Tensor,
    held_out: Tensor,
) -> None:
    """The pipeline in half precision, its facts and its card."""
    modules = {"vae": vae, "text_encoder": text_encoder, "unet": unet}
    facts = {
        "unet": unet_facts,
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        "psnr_train": round(psnr(vae, images[::20]), 1),
        "psnr_test": round(psnr(vae, held_out), 1),
        "pictures": len(images),
        "autoencoder_steps": options.autoencoder_steps,
        "decoder_seconds": round(options.decoder_seconds),
        "unet_seconds": round(options.unet_seconds),
    }
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(options.output)
    (options.output / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    (options.output / "README.md").write_text(card(facts))


if __name__ == "__main__":
    main()
