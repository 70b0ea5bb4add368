"""P6: the reward model against its reference, and rows against each other."""

import math
from collections.abc import Callable

import pytest
import torch

from vca.reward import losses
from vca.reward.heads import LEARNED
from vca.reward.model import TARGETS, RewardModel
from vca.reward.settings import RewardSettings

Make = Callable[..., RewardSettings]
HEADS = ("hidden_mean", "vocab_mean", "linear", "linear_likelihood")
POOLINGS = ("mean", "last")
PROMPTS = ["red square", "a blue square beside a long red green grey square", "green square", "grey"]


@pytest.fixture
def images_BCHW() -> torch.Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def scores(model: RewardModel, images_BCHW: torch.Tensor, prompts: list[str] = PROMPTS) -> torch.Tensor:
    return model(prompts=prompts, image_tokens_BID=model.reader.image_tokens(images_BCHW=images_BCHW))


def reference(model: RewardModel, images_BCHW: torch.Tensor) -> torch.Tensor:
    with model.reference():
        return scores(model, images_BCHW)


def step(
    model: RewardModel, images_BCHW: torch.Tensor, ref_B: torch.Tensor, *, loss: str = "dpo"
) -> tuple[float, float]:
    """Loss and margin of two pairs: pictures 0 and 1 preferred to 2 and 3 under two prompts; gradients are left."""
    prompts = [PROMPTS[0], PROMPTS[1]] * 2
    r_w, r_l = scores(model, images_BCHW, prompts).chunk(2)
    ref_w, ref_l = ref_B.chunk(2)
    loss_B = losses.loss(
        loss,  # type: ignore[arg-type]
        r_w_B=r_w,
        r_l_B=r_l,
        ref_w_B=ref_w,
        ref_l_B=ref_l,
        label_B=torch.ones(2),
        beta=model.settings.beta,
        smoothing=0.0,
        center=0.0,
    )
    loss_B.mean().backward()
    return float(loss_B.mean().detach()), float(((r_w - ref_w) - (r_l - ref_l)).mean().detach())


@pytest.fixture(params=[(head, pooling) for head in HEADS for pooling in POOLINGS], ids=str)
def model(request: pytest.FixtureRequest, settings: Make) -> RewardModel:
    head, pooling = request.param
    layout = "prompt_first" if pooling == "mean" and head != "linear_likelihood" else "image_first"
    # the fixed heads' scores are small at the start, so that beta has to be large
    return RewardModel(
        settings=settings(head=head, pooling=pooling, layout=layout, beta=1.0 if head in LEARNED else 20.0)
    )


def test_p6_log_2_at_the_start_overfit_in_ten_steps_and_the_reference_stays(
    model: RewardModel, images_BCHW: torch.Tensor
) -> None:
    prompts = [PROMPTS[0], PROMPTS[1]] * 2
    with model.reference():
        before = scores(model, images_BCHW, prompts)
    optimizer = torch.optim.AdamW(model.trainable(), lr=3e-3, weight_decay=0.0)
    margins = []
    for number in range(10):
        loss, margin = step(model, images_BCHW, before)
        if number == 0:
            assert loss == pytest.approx(math.log(2), abs=1e-6)
        margins.append(margin)
        optimizer.step()
        optimizer.zero_grad()
    assert margins[-1] > margins[0]
    assert margins[-1] * model.settings.beta > 0.1
    with model.reference():
        after = scores(model, images_BCHW, prompts)
    assert torch.equal(before, after)
    with torch.no_grad():
        assert not torch.allclose(scores(model, images_BCHW, prompts), after)  # the adapters do act


def test_the_last_weight_of_linear_likelihood_is_that_of_the_likelihood(
    settings: Make, images_BCHW: torch.Tensor
) -> None:
    model = RewardModel(settings=settings(head="linear_likelihood"))
    model.head_D.data[-1] = 2.0
    with torch.no_grad():
        rows = model.reader.rows(prompts=PROMPTS)
        tokens_BID = model.reader.image_tokens(images_BCHW=images_BCHW)
        hidden_BLD = model.reader.hidden(rows=rows, image_tokens_BID=tokens_BID)
        expected_B = 2 * model.reader.log_likelihood(rows=rows, hidden_BLD=hidden_BLD)
        assert expected_B.std() > 0
        torch.testing.assert_close(scores(model, images_BCHW), expected_B)


def test_p6_padding_and_batch_mates_change_nothing(model: RewardModel, images_BCHW: torch.Tensor) -> None:
    with torch.no_grad():
        for parameter in model.trainable():  # a trained-like model: fresh adapters and a zero head would hide it
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
        together = scores(model, images_BCHW)
        alone = torch.cat([scores(model, images_BCHW[i : i + 1], [PROMPTS[i]]) for i in range(4)])
        turned = scores(model, images_BCHW.flip(0), PROMPTS[::-1]).flip(0)
        others = scores(model, images_BCHW, [PROMPTS[0], *["red " * 100] * 3])
    assert float((together - alone).abs().max()) < 1e-5
    assert float((together - turned).abs().max()) < 1e-5
    assert float((together[0] - others[0]).abs()) < 1e-5
    assert float(together.std()) > 1e-4


def test_scores_depend_on_prompt_and_image(model: RewardModel, images_BCHW: torch.Tensor) -> None:
    with torch.no_grad():
        model.head_D.copy_(torch.randn(len(model.head_D), generator=torch.Generator().manual_seed(0)))
        same = scores(model, images_BCHW[:1].expand(4, -1, -1, -1), [PROMPTS[0]] * 4)
        by_image = scores(model, images_BCHW, [PROMPTS[0]] * 4)
        by_prompt = scores(model, images_BCHW[:1].expand(4, -1, -1, -1))
    assert float(same.std()) < 1e-5
    assert float(by_image.std()) > 1e-4
    assert float(by_prompt.std()) > 1e-4


@pytest.mark.parametrize("loss", ["bt", "bce", "btt"])
def test_every_loss_learns(loss: str, settings: Make, images_BCHW: torch.Tensor) -> None:
    model = RewardModel(settings=settings(loss=loss))
    optimizer = torch.optim.AdamW(model.trainable(), lr=3e-3, weight_decay=0.0)
    history = []
    for _ in range(10):
        history.append(step(model, images_BCHW, torch.zeros(4), loss=loss))
        optimizer.step()
        optimizer.zero_grad()
    assert history[-1][0] < history[0][0]
    assert history[-1][1] > history[0][1]


def test_heads_are_what_they_say(settings: Make, images_BCHW: torch.Tensor) -> None:
    model = RewardModel(settings=settings(head="hidden_mean", pooling="last"))
    rows = model.reader.rows(prompts=PROMPTS)
    hidden = model.reader.hidden(rows=rows, image_tokens_BID=model.reader.image_tokens(images_BCHW=images_BCHW))
    last = torch.stack([hidden[i, int(rows.valid_BL[i].sum()) - 1] for i in range(4)])
    torch.testing.assert_close(scores(model, images_BCHW), last.mean(-1))
    by_vocabulary = RewardModel(settings=settings(head="vocab_mean", pooling="mean"))
    logits = hidden @ by_vocabulary.reader.model.lm_head.weight.T
    mean = torch.stack([logits[i][rows.after_BL[i]].mean() for i in range(4)])
    torch.testing.assert_close(scores(by_vocabulary, images_BCHW), mean, atol=1e-5, rtol=1e-4)


def test_the_bases_own_opinion_is_yes_against_no(settings: Make, images_BCHW: torch.Tensor) -> None:
    model = RewardModel(settings=settings())
    rows = model.reader.rows(prompts=PROMPTS)
    tokens = model.reader.image_tokens(images_BCHW=images_BCHW)
    logits = model.reader.hidden(rows=rows, image_tokens_BID=tokens)[torch.arange(4), rows.last_B]
    logits = logits @ model.reader.model.lm_head.weight.T
    yes, no = (model.reader.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    got = model.base_match(prompts=PROMPTS, image_tokens_BID=tokens)
    torch.testing.assert_close(got, logits[:, yes] - logits[:, no], atol=1e-5, rtol=1e-4)


def test_adapters_sit_on_the_language_model_alone(settings: Make) -> None:
    model = RewardModel(settings=settings())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora" in name]
    assert len(names) == 2 * 7 * 2  # layers × modules × (A, B)
    assert all("language_model" in name for name in names)
    assert "visual" not in TARGETS
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert any("visual" in name for name in frozen)


def test_the_reference_restores_what_it_found_even_after_an_error(settings: Make, images_BCHW: torch.Tensor) -> None:
    model = RewardModel(settings=settings())
    model.train()
    with torch.no_grad():
        model.head_D.fill_(0.3)
    with pytest.raises(RuntimeError, match="on purpose"), model.reference():  # noqa: PT012
        assert not model.training
        assert float(model.head_D.abs().sum()) == 0
        raise RuntimeError("on purpose")
    assert model.training
    assert float(model.head_D.detach().mean()) == pytest.approx(0.3)
