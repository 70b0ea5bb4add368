"""Which combinations of the safety filter's settings can run."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vca.errors import SettingsError
from vca.safety.settings import SafetySettings


def test_the_defaults_check_pictures_for_people() -> None:
    settings = SafetySettings()
    assert (settings.profile, settings.classifier) == ("development", "open_nsfw")


def test_production_needs_a_classifier() -> None:
    with pytest.raises(SettingsError, match=r"safety\.classifier: got 'none'.*allowed: 'open_nsfw', 'stable"):
        SafetySettings(classifier="none", profile="production")
    assert SafetySettings(classifier="none", profile="development").classifier == "none"


@pytest.mark.parametrize(
    ("classifier", "location"), [("stable_diffusion", None), ("open_nsfw", "some/where"), ("none", "some/where")]
)
def test_a_location_goes_with_stable_diffusion(classifier: str, location: str | None) -> None:
    with pytest.raises(SettingsError, match=r"safety\.location: got"):
        SafetySettings.model_validate({"classifier": classifier, "location": location, "profile": "development"})
    assert SafetySettings(classifier="stable_diffusion", location="some/where").location == "some/where"


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_that_hides_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(ValidationError, match="image_threshold"):
        SafetySettings(image_threshold=threshold)
