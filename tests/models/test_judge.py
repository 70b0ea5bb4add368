import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vca.data.emoji.catalogue import EmojiItem, caption, load_catalogue
from vca.errors import ArtifactError
from vca.models.efficientnet_lite import Conv
from vca.models.judge import SHIPPED, WEIGHTS, Judge, words


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def held_out() -> list[EmojiItem]:
    """Every ninth picture that no training saw."""
    return list(load_catalogue().side("test"))[::9]


def pixels(items: list[EmojiItem]) -> torch.Tensor:
    arrays = [np.asarray(Image.open(io.BytesIO(item.png)).convert("RGB")) for item in items]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def images(held_out: list[EmojiItem]) -> torch.Tensor:
    return pixels(held_out)


def test_it_prefers_the_right_caption_of_pictures_it_never_saw(
    judge: Judge, held_out: list[EmojiItem], images: torch.Tensor
) -> None:
    vectors = judge.embed_images(images_BCHW=images)
    right = judge.embed_texts(texts=[caption(item, style=False) for item in held_out])
    another = judge.embed_texts(texts=[caption(item, style=False) for item in held_out[7:] + held_out[:7]])
    assert ((vectors * right).sum(1) > (vectors * another).sum(1)).float().mean() > 0.85


def test_it_sees_skin_tone(judge: Judge, held_out: list[EmojiItem], images: torch.Tensor) -> None:
    rows = [row for row, item in enumerate(held_out) if item.tone in ("light", "dark")]
    swap = {"light": "dark", "dark": "light"}
    right = [caption(held_out[row], style=False) for row in rows]
    wrong = [
        text.replace(f"{held_out[r].tone} skin", f"{swap[str(held_out[r].tone)]} skin")
        for r, text in zip(rows, right, strict=True)
    ]
    vectors = judge.embed_images(images_BCHW=images[rows])
    won = (vectors * judge.embed_texts(texts=right)).sum(1) > (vectors * judge.embed_texts(texts=wrong)).sum(1)
    assert won.float().mean() > 0.9


def test_it_knows_the_style_of_pictures_it_never_saw_also_faded_ones(
    judge: Judge, held_out: list[EmojiItem], images: torch.Tensor
) -> None:
    truth = torch.tensor([judge.styles.index(item.style) for item in held_out])
    for seen, least in ((images, 0.9), (images * 0.55 + 0.4, 0.8)):
        logp = judge.style_logp(features_BF=judge.features(images_BCHW=seen))
        assert torch.allclose(logp.exp().sum(1), torch.ones(len(seen)), atol=1e-5)
        assert (logp.argmax(1) == truth).float().mean() > least


def test_it_is_unsure_of_the_style_where_there_is_nothing_to_judge(judge: Judge) -> None:
    torch.manual_seed(0)
    noise = (0.5 + 0.3 * torch.randn(16, 3, 64, 64)).clamp(0, 1)
    assert judge.style_logp(features_BF=judge.features(images_BCHW=noise)).exp().amax(1).mean() < 0.7


def test_distance_is_zero_for_the_same_picture_and_grows_with_the_edit(judge: Judge) -> None:
    items = {i.item_id: i for i in load_catalogue().items}
    light, dark, banana = pixels([items[f"noto/{code}"] for code in ("1f468-1f3fb", "1f468-1f3ff", "1f34c")])
    same, tone, other = judge.distance(
        left_BCHW=torch.stack([light] * 3), right_BCHW=torch.stack([light, dark, banana])
    )
    assert same == pytest.approx(0, abs=1e-6)
    assert 0 < tone < other


def test_answers_depend_on_neither_the_batch_nor_the_order(judge: Judge, images: torch.Tensor) -> None:
    together = judge.features(images_BCHW=images[:6], batch=6)
    alone = judge.features(images_BCHW=images[:6], batch=1)
    assert torch.allclose(together, alone, atol=1e-4)
    texts = ["cat", "woman firefighter, medium-dark skin", "cat", ""]
    vectors = judge.embed_texts(texts=texts)
    assert torch.equal(vectors[0], vectors[2])
    assert torch.allclose(vectors[0], judge.embed_texts(texts=["cat"])[0], atol=1e-5)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)


def test_words_keep_hyphens_and_lose_punctuation() -> None:
    assert words("Woman firefighter, medium-dark skin, twemoji style!") == [
        "woman",
        "firefighter",
        "medium-dark",
        "skin",
        "twemoji",
        "style",
    ]


@pytest.mark.parametrize(("kernel", "size", "first"), [(3, 8, 0), (5, 8, -1), (3, 96, 0)])
def test_stride_2_pads_as_tensorflow_does(kernel: int, size: int, first: int) -> None:
    conv = Conv(1, 1, kernel, stride=2)
    with torch.no_grad():
        conv.weight.fill_(1)
        assert conv.bias is not None
        conv.bias.zero_()
        line = torch.arange(1.0, size + 1).expand(1, 1, size, size)
        out = conv(line)
    padded = F.pad(torch.arange(1.0, size + 1), (-first, kernel))
    expected = padded.unfold(0, kernel, 2).sum(1)[: size // 2]  # output j covers inputs 2j+first … 2j+first+kernel-1
    assert out.shape[-1] == size // 2
    middle = out[0, 0, size // 4] / kernel  # rows away from the edge repeat the line `kernel` times
    assert torch.allclose(middle, expected)


def test_a_damaged_or_missing_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="base-models"):
        Judge.load(tmp_path)
    folder = tmp_path / "judge"
    shutil.copytree(SHIPPED, folder)
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01\x02")
    with pytest.raises(ArtifactError, match="sha256"):
        Judge.load(folder)
