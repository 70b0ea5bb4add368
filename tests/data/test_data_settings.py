"""Settings that can't work are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vca.data.settings import DataSettings


def test_defaults_are_the_papers() -> None:
    config = DataSettings()
    fractions = (config.test_fraction, config.reward_fraction, config.diffusion_fraction, config.validation_fraction)
    assert fractions == (0.2, 0.38, 0.17, 0.05)
    assert config.style_keyword_limit == 4
    assert [source.kind for source in config.sources] == ["emoji"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"reward_fraction": 0.6}, "together they may be 1 at most"),
        ({"sources": []}, "at least 1 item"),
        ({"sources": [{"kind": "laion", "path": "x"}]}, "image_reward"),
        ({"sources": [{"kind": "emoji"}, {"kind": "emoji"}]}, "two sources are called 'emoji'"),
        ({"sources": [{"kind": "deepfashion", "path": "x", "keep_split": True}]}, "keep_split is for"),
        ({"sources": [{"kind": "deepfashion", "path": "x", "fractoin": 0.3}]}, "fractoin"),
        ({"shuffle": True}, "shuffle"),
    ],
)
def test_refusals_name_the_trouble(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DataSettings.model_validate(settings)
