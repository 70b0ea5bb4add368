"""The CLIP adapter against transformers' own CLIPModel, on a random CLIP of a few thousand weights."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from vca.errors import ArtifactError
from vca.evaluation.judges import SHIPPED, Clip, content_scores, load_content_judge
from vca.models.judge import Judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    place = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "vocab_size": 54, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(place)
    tokens = {word: number for number, word in enumerate(vocabulary)}
    CLIPTokenizer(vocab=tokens, merges=[], model_max_length=12).save_pretrained(place)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(place)
    return place


def test_scores_are_the_cosines_of_transformers_clip(folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    images = torch.rand(5, 3, 16, 16)
    prompts = ["cat", "dog", "a cat", "zebra", "cat"]
    found = content_scores(Clip.load(str(folder)), prompts=prompts, images_BCHW=images)
    tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        out = CLIPModel.from_pretrained(folder).eval()(**tokens, pixel_values=(images - mean) / std)
    expected = (F.normalize(out.image_embeds, dim=1) * F.normalize(out.text_embeds, dim=1)).sum(1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_long_prompts_are_cut_and_other_sizes_resized(folder: Path) -> None:
    found = content_scores(Clip.load(str(folder)), prompts=["many words " * 20], images_BCHW=torch.rand(1, 3, 40, 40))
    assert found.isfinite().all()


def test_the_shipped_judge_stands_in_the_settings_as_package_judge(tmp_path: Path) -> None:
    shipped = Judge.load()
    assert load_content_judge(SHIPPED, shipped=shipped) is shipped
    with pytest.raises(ArtifactError, match="no CLIP model"):
        load_content_judge(str(tmp_path), shipped=shipped)
