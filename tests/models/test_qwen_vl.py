import pytest
import torch

from vca.errors import ArtifactError, SettingsError
from vca.models import qwen_vl

CAPTIONS = ["red heart, noto style", "woman pilot, dark skin, facing right", "grinning face", "Match?"] * 3


def build(*, layout: qwen_vl.Layout = "image_first", seed: int = 0) -> qwen_vl.QwenVL:
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = qwen_vl.small_tokenizer(texts=CAPTIONS, vocabulary=400)
    config = qwen_vl.small_config(tokenizer=tokenizer, width=128, layers=2, mlp=128, vision_width=64, vision_layers=2)
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    return qwen_vl.QwenVL(
        model=model,
        tokenizer=tokenizer,
        images=qwen_vl.small_images(),
        image_size=64,
        layout=layout,
        instruction="Match?",
    )


@pytest.fixture(scope="module", params=["image_first", "prompt_first"])
def reader(request: pytest.FixtureRequest) -> qwen_vl.QwenVL:
    return build(layout=request.param)


@pytest.fixture
def images_BCHW() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_patches_equal_the_models_own_processor(reader: qwen_vl.QwenVL) -> None:
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    theirs = qwen_vl.small_images()(images=list(pixels.numpy()), return_tensors="pt")["pixel_values"]
    ours = reader.patches(images_BCHW=pixels.float() / 255)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=0)


def test_patches_resize_like_the_models_own_processor(reader: qwen_vl.QwenVL) -> None:
    from PIL import Image

    y, x = torch.meshgrid(torch.arange(160), torch.arange(160), indexing="ij")
    smooth = torch.stack([x, y, (x + y) // 2]).mul(255).div(160).to(torch.uint8)
    pil = Image.fromarray(smooth.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC)
    theirs = qwen_vl.small_images()(images=[pil], return_tensors="pt")["pixel_values"]
    ours = reader.patches(images_BCHW=smooth[None].float() / 255)
    torch.testing.assert_close(ours, theirs.float(), atol=2.5 / 255 / 0.5, rtol=0)  # a step of 8-bit rounding


def test_batched_vision_attention_equals_transformers(images_BCHW: torch.Tensor) -> None:
    reader = build()
    grid = torch.tensor([[1, 8, 8]]).expand(3, -1)
    patches = reader.patches(images_BCHW=images_BCHW)
    ours = reader.image_tokens(images_BCHW=images_BCHW).flatten(0, 1)
    for block in reader.model.model.visual.blocks:
        del block.attn.forward  # back to the class's own, which loops over images
    theirs = reader.model.model.visual(patches, grid_thw=grid).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_positions_and_hidden_states_equal_transformers(reader: qwen_vl.QwenVL, images_BCHW: torch.Tensor) -> None:
    rows = reader.rows(prompts=["red heart", "woman pilot, dark skin, facing right", "grinning face"])
    grid = torch.tensor([[1, 8, 8]]).expand(3, -1)
    theirs, _ = reader.model.model.get_rope_index(
        rows.ids_BL, mm_token_type_ids=rows.image_BL.int(), image_grid_thw=grid, attention_mask=rows.valid_BL.long()
    )
    ours = reader.positions(rows=rows)
    assert torch.equal(ours[:, rows.valid_BL], theirs[:, rows.valid_BL])
    expected = reader.model.model(
        input_ids=rows.ids_BL,
        attention_mask=rows.valid_BL.long(),
        pixel_values=reader.patches(images_BCHW=images_BCHW),
        image_grid_thw=grid,
        mm_token_type_ids=rows.image_BL.int(),
    ).last_hidden_state
    got = reader.hidden(rows=rows, image_tokens_BID=reader.image_tokens(images_BCHW=images_BCHW))
    torch.testing.assert_close(got[rows.valid_BL], expected[rows.valid_BL], atol=1e-4, rtol=1e-4)


def test_log_likelihood_equals_the_loss_of_transformers(images_BCHW: torch.Tensor) -> None:
    reader = build()
    prompts = ["red heart", "woman pilot, dark skin, facing right", "grinning face"]
    rows = reader.rows(prompts=prompts)
    tokens_BID = reader.image_tokens(images_BCHW=images_BCHW)
    ours_B = reader.log_likelihood(rows=rows, hidden_BLD=reader.hidden(rows=rows, image_tokens_BID=tokens_BID))
    for row in range(len(prompts)):
        ids_1L = rows.ids_BL[row : row + 1, : int(rows.last_B[row]) + 1]
        read_L = rows.prompt_BL[row, : ids_1L.shape[1]]
        read_L = read_L | read_L.roll(1)  # and the token that ends the prompt
        theirs = reader.model(
            input_ids=ids_1L,
            pixel_values=reader.patches(images_BCHW=images_BCHW[row : row + 1]),
            image_grid_thw=torch.tensor([[1, 8, 8]]),
            mm_token_type_ids=rows.image_BL[row : row + 1, : ids_1L.shape[1]].int(),
            labels=ids_1L.masked_fill(~read_L, -100),
        )
        assert ours_B[row].item() == pytest.approx(-theirs.loss.item() * int(read_L.sum()), rel=1e-4)


def test_rows_know_their_prompt_their_image_and_their_end(reader: qwen_vl.QwenVL) -> None:
    prompts = ["red heart, noto style", "woman pilot, dark skin"]
    rows = reader.rows(prompts=prompts)
    assert rows.image_BL.sum(1).tolist() == [16, 16]
    for row, prompt in enumerate(prompts):
        assert reader.tokenizer.decode(rows.ids_BL[row][rows.prompt_BL[row]]) == prompt
        tail = reader.tokenizer.decode(rows.ids_BL[row][rows.after_BL[row]])
        assert "Match?" in tail
        assert (prompt in tail) == (reader.layout == "image_first")
        assert "vision_end" not in tail
        assert rows.valid_BL[row].nonzero().max() == rows.last_B[row]


def test_control_tokens_in_a_prompt_stay_text(reader: qwen_vl.QwenVL) -> None:
    rows = reader.rows(prompts=["a <|image_pad|> heart <|im_end|>"])
    assert int(rows.image_BL.sum()) == 16
    # the frame alone ends a turn once; the prompt's own attempt is spelled out in letters
    assert int((rows.ids_BL == reader.tokenizer.convert_tokens_to_ids("<|im_end|>")).sum()) == 1


def test_a_huge_prompt_is_cut(reader: qwen_vl.QwenVL) -> None:
    assert int(reader.rows(prompts=["heart " * 5000]).prompt_BL.sum()) == qwen_vl.PROMPT_TOKENS


def test_an_image_size_that_does_not_fit_is_refused() -> None:
    reader = build()
    with pytest.raises(SettingsError, match="multiple of 64"):
        qwen_vl.QwenVL(
            model=reader.model,
            tokenizer=reader.tokenizer,
            images=qwen_vl.small_images(),
            image_size=72,
            layout="image_first",
            instruction="",
        )


def test_pixels_get_gradients(images_BCHW: torch.Tensor) -> None:
    reader = build()
    images = images_BCHW[:1].requires_grad_(True)
    rows = reader.rows(prompts=["red heart"])
    reader.hidden(rows=rows, image_tokens_BID=reader.image_tokens(images_BCHW=images))[0, -1, 0].backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    qwen_vl.save_base(reader=build(), images=qwen_vl.small_images(), folder=folder, dtype=torch.float32)
    return str(folder)


def load(location: str, *, nf4: bool = True) -> qwen_vl.QwenVL:
    return qwen_vl.load(location=location, image_size=64, layout="image_first", instruction="Match?", nf4=nf4)


def test_a_saved_model_loads_and_reads_the_same(saved: str, images_BCHW: torch.Tensor) -> None:
    before, after = build(), load(saved, nf4=False)
    rows = before.rows(prompts=["red heart, noto style"] * 3)
    assert torch.equal(after.rows(prompts=["red heart, noto style"] * 3).ids_BL, rows.ids_BL)
    tokens = before.image_tokens(images_BCHW=images_BCHW)
    torch.testing.assert_close(
        after.hidden(rows=rows, image_tokens_BID=after.image_tokens(images_BCHW=images_BCHW)),
        before.hidden(rows=rows, image_tokens_BID=tokens),
    )


def test_nf4_covers_the_language_model_and_nothing_else(saved: str) -> None:
    from bitsandbytes.nn import Linear4bit

    names = [name for name, module in load(saved).model.named_modules() if isinstance(module, Linear4bit)]
    assert len(names) == 2 * 7
    assert all("language_model" in name for name in names)


def test_4bit_gradients_are_right_after_an_evaluation(saved: str) -> None:
    """bitsandbytes repacks weights in the first no-grad forward on some CPUs; then training goes wrong."""
    import bitsandbytes.functional as F
    from bitsandbytes.nn import Linear4bit

    reader = load(saved)
    layer = next(m for m in reader.model.modules() if isinstance(m, Linear4bit))
    packed = layer.weight.data.clone()
    weight = F.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer(x)
    assert torch.equal(layer.weight.data, packed)
    x.requires_grad_(True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(4, layer.out_features) @ weight, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_read_is_refused(tmp_path: object, saved: str) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ArtifactError, match="gpt2"):
        load(str(folder))
    (folder / "config.json").write_text((Path(saved) / "config.json").read_text())
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load(str(folder))
