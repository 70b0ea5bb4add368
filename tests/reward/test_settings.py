import pytest
from pydantic import ValidationError

from vca.errors import SettingsError
from vca.reward.settings import RewardSettings


def test_the_defaults_are_the_papers_figures() -> None:
    s = RewardSettings()
    assert (s.lora_rank, s.lora_alpha, s.batch, s.epochs) == (64, 16, 128, 1)
    assert (s.head, s.pooling, s.loss) == ("hidden_mean", "mean", "dpo")


def test_the_batch_arithmetic_holds_and_is_told_in_words() -> None:
    s = RewardSettings(batch=128, micro_batch=4)
    assert s.accumulation(world=8) * 4 * 8 == 128
    assert s.arithmetic(world=8) == "128 pairs = 4 in a micro-batch × 4 accumulated × 8 processes"
    assert s.arithmetic(world=1).endswith("× 1 process")


def test_a_batch_that_cannot_be_shared_says_what_to_set() -> None:
    with pytest.raises(SettingsError, match="multiple of 24"):
        RewardSettings(batch=128, micro_batch=4).accumulation(world=6)


def test_a_micro_batch_that_does_not_divide_is_refused_with_one_that_does() -> None:
    with pytest.raises(ValidationError, match="set micro_batch to 4"):
        RewardSettings(batch=32, micro_batch=5)


def test_a_likelihood_needs_the_picture_first() -> None:
    with pytest.raises(ValidationError, match="set layout to image_first"):
        RewardSettings(head="linear_likelihood")


@pytest.mark.parametrize(
    "wrong", [{"beta": 0}, {"label_smoothing": 0.5}, {"head": "mean"}, {"negative_mix": 0}, {"x": 1}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RewardSettings.model_validate(wrong)
