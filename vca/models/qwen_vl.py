"""Qwen2-VL and Qwen2.5-VL of any size, from any location, as a reader of (prompt, image) rows.

The shipped small model and the production ones go through the same class and the same lines. Three things differ from
what `transformers` does by itself, and tests hold them equal to it:
* images are prepared in torch, differentiably and without torchvision (`patches`), all of one size;
* the vision tower attends over a batch of equal images instead of looping over them;
* M-RoPE positions are computed for the whole batch at once (`positions`).

Shape suffixes: B rows, C channels, H, W pixels, N patches of one image, I image tokens of one image, L tokens of a row,
D width of the language model, F numbers in a patch.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vca.errors import ArtifactError, SettingsError
from vca.models.location import resolve

Layout = Literal["image_first", "prompt_first"]

ANSWERS = ("Yes", "No")
# Longer prompts are cut: an image prompt is limited to 77 CLIP tokens anyway, and a row must not outgrow the memory.
PROMPT_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Tokenised rows, right-padded.

    ids_BL: token ids, with the image pad id where image tokens go. valid_BL: not padding. image_BL: image positions.
    after_BL: valid positions after the image. prompt_BL: the prompt's own tokens. last_B: the last valid column.
    """

    ids_BL: Tensor
    valid_BL: Tensor
    image_BL: Tensor
    after_BL: Tensor
    prompt_BL: Tensor
    last_B: Tensor


class QwenVL:
    """A Qwen2-VL or Qwen2.5-VL with its tokenizer and its image format, at one fixed image size.

    image_size: side of the square images the vision tower reads, in pixels. layout: what comes first in a row.
    instruction: the question after prompt and image.
    """

    def __init__(
        self, *, model: Any, tokenizer: Any, images: Any, image_size: int, layout: Layout, instruction: str
    ) -> None:
        self.model, self.tokenizer, self.image_size, self.layout = model, tokenizer, image_size, layout
        self.patch, self.merge, self.frames = images.patch_size, images.merge_size, images.temporal_patch_size
        self.mean_C, self.std_C = torch.tensor(images.image_mean), torch.tensor(images.image_std)
        step = self.patch * self.merge
        windows = getattr(model.config.vision_config, "window_size", step)
        allowed = max(step, windows)
        if image_size % allowed:
            raise SettingsError(
                f"image_size {image_size} does not fit this model's vision tower: give a multiple of {allowed} pixels"
            )
        self.grid = image_size // self.patch
        self.image_tokens_per_image = (self.grid // self.merge) ** 2
        for block in model.model.visual.blocks:
            block.attn.forward = types.MethodType(_attend_in_a_batch, block.attn)
        self._image_id: int = model.config.image_token_id
        self._before, self._after = self._frame(instruction)
        self.answer_ids = [self._only_token(answer) for answer in ANSWERS]

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def width(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.model.visual.device)

    # ------------------------------------------------------------------ images

    def patches(self, *, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] as the vision tower reads them: [B*N, F]. Differentiable.

        Resized (bicubic, antialiased, as the model's own processor does) where they are not of `image_size`.
        """
        size, patch, merge = self.image_size, self.patch, self.merge
        if images_BCHW.shape[-2:] != (size, size):
            images_BCHW = torch.nn.functional.interpolate(
                images_BCHW, size=(size, size), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        mean, std = (stat.to(images_BCHW.device).view(1, 3, 1, 1) for stat in (self.mean_C, self.std_C))
        tiles = self.grid // merge
        x = ((images_BCHW - mean) / std).reshape(-1, 3, tiles, merge, patch, tiles, merge, patch)
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B, rows, columns of tiles; rows, columns in a tile; C, patch, patch
        x = x.unsqueeze(6).expand(*x.shape[:6], self.frames, patch, patch)  # a still image repeats its one frame
        return x.reshape(images_BCHW.shape[0] * self.grid**2, -1)

    def image_tokens(self, *, images_BCHW: Tensor) -> Tensor:
        """What the vision tower says of images in [0, 1]: [B, I, D]."""
        patches = self.patches(images_BCHW=images_BCHW.to(self.device))
        grid = torch.tensor([[1, self.grid, self.grid]], device=self.device).expand(len(images_BCHW), -1)
        tokens: Tensor = self.model.model.visual(patches, grid_thw=grid).pooler_output
        return tokens.reshape(len(images_BCHW), self.image_tokens_per_image, -1)

    # -------------------------------------------------------------------- text

    def rows(self, *, prompts: Sequence[str]) -> Rows:
        """One row per prompt: chat frame, prompt, place for one image, instruction."""
        # A prompt is data: control tokens written into it are broken up, never obeyed.
        encoded = self.tokenizer([p.replace("<|", "< |") for p in prompts], add_special_tokens=False).input_ids
        pads = [self._image_id] * self.image_tokens_per_image
        rows, spans = [], []
        for ids in encoded:
            ids = ids[:PROMPT_TOKENS]
            head, tail = self._before, self._after
            if self.layout == "image_first":
                start = len(head[0]) + len(pads) + len(head[1])
                rows.append([*head[0], *pads, *head[1], *ids, *tail[0]])
            else:
                start = len(head[0])
                rows.append([*head[0], *ids, *tail[0], *pads, *tail[1]])
            spans.append((start, start + len(ids)))
        length = max(map(len, rows))
        ids_BL = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        column_L = torch.arange(length)
        sizes_B = torch.tensor([len(row) for row in rows])
        valid_BL = column_L < sizes_B[:, None]
        image_BL = (ids_BL == self._image_id) & valid_BL
        last_image_B = image_BL.int().cumsum(1).argmax(1)
        spans_B2 = torch.tensor(spans)
        return Rows(
            ids_BL=ids_BL,
            valid_BL=valid_BL,
            image_BL=image_BL,
            # +1: the end-of-vision token belongs to the image, what follows has read it
            after_BL=valid_BL & (column_L > last_image_B[:, None] + 1),
            prompt_BL=(column_L >= spans_B2[:, :1]) & (column_L < spans_B2[:, 1:]),
            last_B=sizes_B - 1,
        )

    def positions(self, *, rows: Rows) -> Tensor:
        """M-RoPE positions (time, height, width) of every token: [3, B, L].

        Text counts on by one; an image's tokens share a time step and count rows and columns; what follows the image
        counts on from the larger of the two (Qwen2-VL, arXiv:2409.12191, section 2.1).
        """
        side, count = self.grid // self.merge, self.image_tokens_per_image
        column_L = torch.arange(rows.ids_BL.shape[1])
        start_B1 = rows.image_BL.int().argmax(1, keepdim=True)
        offset_BL = (column_L - start_B1).clamp(0, count - 1)
        text_BL = torch.where(column_L >= start_B1 + count, column_L - count + side, column_L.expand_as(rows.ids_BL))
        height_BL = torch.where(rows.image_BL, start_B1 + offset_BL // side, text_BL)
        width_BL = torch.where(rows.image_BL, start_B1 + offset_BL % side, text_BL)
        time_BL = torch.where(rows.image_BL, start_B1.expand_as(text_BL), text_BL)
        return torch.stack([time_BL, height_BL, width_BL])

    def hidden(self, *, rows: Rows, image_tokens_BID: Tensor) -> Tensor:
        """Last hidden states of every token, in float32: [B, L, D]. `lm_head` is not called.

        Rows are padded on the right and attention is causal, so that no token ever sees padding and no mask is needed.
        """
        device = self.device
        embeds_BLD = self.language_model.embed_tokens(rows.ids_BL.to(device))
        image_BL1 = rows.image_BL.to(device).unsqueeze(-1)
        embeds_BLD = embeds_BLD.masked_scatter(image_BL1, image_tokens_BID.to(embeds_BLD.dtype))
        output = self.language_model(
            inputs_embeds=embeds_BLD, position_ids=self.positions(rows=rows).to(device), use_cache=False
        )
        hidden: Tensor = output.last_hidden_state
        return hidden.float()

    def log_likelihood(self, *, rows: Rows, hidden_BLD: Tensor) -> Tensor:
        """log p(prompt | image) and of the token that ends it, in nats, [B]. Layout image_first alone has it."""
        target_BL = (rows.prompt_BL[:, 1:] | rows.prompt_BL[:, :-1]).to(hidden_BLD.device)
        logits = hidden_BLD[:, :-1][target_BL] @ self.model.lm_head.weight.float().T
        targets = rows.ids_BL[:, 1:].to(hidden_BLD.device)[target_BL]
        token_logp = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return hidden_BLD.new_zeros(target_BL.shape).masked_scatter(target_BL, token_logp).sum(1)

    def _frame(self, instruction: str) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the chat frame: what comes before the prompt and after it, each cut where the image goes."""
        mark = "PROMPTGOESHERE"
        content = [{"type": "text", "text": mark}, {"type": "image"}]
        if self.layout == "image_first":
            content.reverse()
        content.append({"type": "text", "text": "\n" + instruction})
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pad = self.tokenizer.convert_ids_to_tokens(self._image_id)
        if chat.count(mark) != 1 or chat.count(pad) != 1:
            raise ArtifactError("the base model's chat template does not place one text and one image in a user turn")
        before, after = chat.split(mark)

        def ids(text: str) -> list[list[int]]:
            return [self.tokenizer(part, add_special_tokens=False).input_ids for part in text.split(pad)]

        return ids(before), ids(after)

    def _only_token(self, word: str) -> int:
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ArtifactError(f"the base model's tokenizer splits the answer {word!r}; it must be a single token")
        return int(ids[0])


def _attend_in_a_batch(
    self: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> Tensor:
    """Vision attention over equal chunks (images, or windows of images) as one batch.

    transformers loops over the chunks in Python, which on a CPU costs several times the arithmetic itself.
    """
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    tokens, chunks = hidden_states.shape[0], cu_seqlens.numel() - 1
    q, k, v = self.qkv(hidden_states).reshape(tokens, 3, self.num_heads, -1).unbind(1)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (t.reshape(chunks, tokens // chunks, self.num_heads, -1).transpose(1, 2) for t in (q, k, v))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
    out: Tensor = self.proj(mixed.transpose(1, 2).reshape(tokens, -1))
    return out


def load(
    *,
    location: str,
    image_size: int,
    layout: Layout,
    instruction: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    nf4: bool = True,
) -> QwenVL:
    """A Qwen2-VL or Qwen2.5-VL by location (see `vca.models.location`), frozen and in eval mode.

    nf4: the language model's linear layers in 4-bit NormalFloat with double quantisation (QLoRA, arXiv:2305.14314);
    vision tower, embeddings and norms stay in `dtype`, which is also what the 4-bit layers compute in.
    Raises ArtifactError where nothing usable is there.
    """
    # On import it advises to install a package that would fetch kernels over the network at run time.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig
    from transformers import Qwen2_5_VLForConditionalGeneration as Qwen2_5
    from transformers import Qwen2VLForConditionalGeneration as Qwen2
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading reports through vca.progress or not at all
    where = resolve(location)
    classes = {"qwen2_vl": Qwen2, "qwen2_5_vl": Qwen2_5}
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # "visual" alone would match nothing and quantise the vision tower too
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )
    try:
        family = AutoConfig.from_pretrained(where).model_type
        if family not in classes:
            raise ArtifactError(
                f"base model {location!r} is of type {family!r}; the reward model reads {' and '.join(classes)}"
            )
        model = classes[family].from_pretrained(
            where,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            quantization_config=quantization if nf4 else None,
        )
        tokenizer = AutoTokenizer.from_pretrained(where)
        images = Qwen2VLImageProcessorPil.from_pretrained(where)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"base model {location!r} cannot be loaded: {first_line}") from error
    keep_4bit_trainable(model)
    model.requires_grad_(False).eval()
    return QwenVL(
        model=model, tokenizer=tokenizer, images=images, image_size=image_size, layout=layout, instruction=instruction
    )


def keep_4bit_trainable(model: torch.nn.Module) -> None:
    """Forbid bitsandbytes to repack 4-bit weights in place, which it does in the first forward without gradients.

    On CPUs with AVX512-BF16 the repacked form has no backward: later training raises, or silently gets wrong gradients.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def small_config(*, tokenizer: Any, width: int, layers: int, mlp: int, vision_width: int, vision_layers: int) -> Any:
    """A Qwen2.5-VL of laptop size for 64-pixel images in 8-pixel patches: 16 image tokens.

    width: of the language model, a multiple of 64 as 4-bit blocks need it; 64 per head, one key-value head.
    """
    from transformers import Qwen2_5_VLConfig

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_width,
            "intermediate_size": vision_width * 2,
            "num_heads": vision_width // 32,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 64,
            "out_hidden_size": width,
            "fullatt_block_indexes": list(range(vision_layers)),
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


# One user turn, no role names: every token of a small model's frame costs time in every row.
_SMALL_CHAT = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|im_end|>{% endif %}"
)


def small_tokenizer(*, texts: Sequence[str], vocabulary: int) -> Any:
    """A Qwen2 tokenizer (byte-level BPE) of at most `vocabulary` entries learned from `texts`."""
    import json

    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    blank = Qwen2Tokenizer()._tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The answers must be single tokens, whatever the captions say.
    blank.train_from_iterator([*texts, *ANSWERS * 1000], trainer)
    learned = json.loads(blank.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        additional_special_tokens=special,
        model_max_length=512,
    )
    tokenizer.chat_template = _SMALL_CHAT
    return tokenizer


def small_images() -> Any:
    """The image format of the small model: 64 × 64 pixels in 8-pixel patches, normalised to [-1, 1]."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 64 * 64, "longest_edge": 64 * 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def save_base(*, reader: QwenVL, images: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write model, tokenizer and image format as `load` reads them; weights in `dtype`."""
    reader.model.to(dtype).save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
