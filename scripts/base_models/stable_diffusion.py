"""Train the local preset's small Stable Diffusion: an autoencoder, a text encoder and a U-Net, on EmojiDialog.

    python -m scripts.base_models.stable_diffusion --output vca/models/base/stable_diffusion

Real diffusers and transformers classes in small sizes, so that the code that loads, adapts and serves them is the code
that runs on SD 2.1. Only train-side pictures are seen: held-out concepts and combinations stay held out. Half of the
captions leave the drawing style open, so that the model draws a mixture of styles there; the other half name it.
Each phase is resumable: its result is kept in the work folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scripts.base_models.autoencoder import (
    LATENT_CHANNELS,
    Averages,
    Log,
    encode,
    images_of,
    new_autoencoder,
    psnr,
    train_autoencoder,
)
from vca.data.emoji.catalogue import Catalogue, EmojiItem, caption, load_catalogue

TOKENS = 32  # twice the longest caption: the text encoder is a fifth of a training step even so
VOCABULARY = 4096
BATCH = 64
RATES = (1.2e-3, 7e-4, 6e-4)  # peak learning rate of each cosine cycle


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


def train_unet(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: tuple[Tensor, Tensor],
    items: list[EmojiItem],
    tokenizer: CLIPTokenizer,
    *,
    rate: float,
    seconds: float,
    seed: int,
    keep: Path,
) -> dict[str, Any]:
    """One cosine cycle of text encoder and U-Net together, for `seconds` of CPU; both end as exponential averages.

    latents: mean and standard deviation of each picture's posterior, already scaled. v-prediction with min-SNR
    weights (Hang et al. 2023, gamma 5); one caption in ten is empty, so that guidance works.
    """
    torch.manual_seed(seed)
    scheduler = new_scheduler()
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    averages = Averages(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    tokens_open, tokens_named = (tokenise(tokenizer, list(texts)) for texts in zip(*captions_of(items), strict=True))
    tokens_null = tokenise(tokenizer, [""])
    weights, generator = balance(items), torch.Generator().manual_seed(seed)
    alphas, (mean, std) = scheduler.alphas_cumprod, latents
    start, step, recent, log = time.process_time(), 0, 0.0, Log("unet", 10**9)
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 200, 1.0) * (0.5 * (1 + math.cos(math.pi * spent / seconds)) + 0.01)
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
        # PyTorch's flash attention for CPUs is slow backward: plain attention makes the whole step 1.3 times as fast.
        # float32, not bfloat16: only processors with matrix units for it gain (.32 s a step instead of .46), others
        # lose as much (.77 instead of .52).
        with sdpa_kernel(SDPBackend.MATH):
            states_BLD = text_encoder(tokens_BL).last_hidden_state
            output_BCHW = unet(noisy_BCHW, times_B, states_BLD).sample
        snr_B = alphas[times_B] / (1 - alphas[times_B])
        weight_B = snr_B.clamp(max=5) / (snr_B + 1)
        loss = (weight_B * (output_BCHW - target_BCHW).square().mean((1, 2, 3))).mean()
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
    unet.save_pretrained(keep / "unet")
    text_encoder.save_pretrained(keep / "text_encoder")
    return {"steps": step, "samples": step * BATCH, "loss": round(recent, 4)}


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
Autoencoder: {facts["autoencoder_steps"]} steps of 16.
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
    parser.add_argument("--outline-steps", type=int, default=1500)
    parser.add_argument("--colour-steps", type=int, default=900)
    parser.add_argument("--unet-seconds", type=float, nargs=len(RATES), default=[2100, 1500, 2000])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    catalogue = load_catalogue()
    items = [item for item in catalogue.items if item.split == "train"]
    images = images_of(items)
    held_out = images_of([item for item in catalogue.items if item.split == "test"][::5])

    if not (options.work / "vae").exists():
        vae = new_autoencoder()
        for colour, steps, warmup in ((False, options.outline_steps, 50), (True, options.colour_steps, 30)):
            train_autoencoder(vae, images, colour=colour, steps=steps, warmup=warmup, seed=options.seed + colour)
        vae.save_pretrained(options.work / "vae")
    vae = AutoencoderKL.from_pretrained(options.work / "vae").eval()
    tokenizer = new_tokenizer(catalogue, options.work / "tokenizer")
    unet, text_encoder, latents = new_unet(), new_text_encoder(tokenizer), encode(vae, images)
    cycles = [
        train_unet(
            unet,
            text_encoder,
            latents,
            items,
            tokenizer,
            rate=rate,
            seconds=seconds,
            seed=options.seed + cycle,
            keep=options.work,
        )
        for cycle, (rate, seconds) in enumerate(zip(RATES, options.unet_seconds, strict=True))
    ]
    unet_facts = {"steps": sum(cycle["steps"] for cycle in cycles), "loss": cycles[-1]["loss"]}
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
        "autoencoder_steps": options.outline_steps + options.colour_steps,
        "unet_seconds": round(sum(options.unet_seconds)),
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
