"""P1, P3, P8: the step's Gaussian, against torch.distributions, the DDPM posterior and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from vca.diffusion.schedule import Schedule, ddim_step, log_prob, make_schedule, split_prediction

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def schedule(steps: int, spacing: str = "trailing", prediction: str = "epsilon") -> Schedule:
    return make_schedule(
        ALPHAS, steps=steps, prediction_type=prediction, final_alpha_cumprod=float(ALPHAS[0]), spacing=spacing
    )


def test_p01_log_prob_is_the_normal_density() -> None:
    action, mean = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    sigma = torch.rand(3, 1, 1, 1, dtype=torch.float64) + 0.1
    expected = Independent(Normal(mean, sigma), 3).log_prob(action)
    assert torch.allclose(log_prob(action, mean, sigma, reduction="sum"), expected, rtol=0, atol=1e-9)
    assert torch.allclose(log_prob(action, mean, sigma, reduction="mean"), expected / 256, rtol=0, atol=1e-12)
    assert torch.allclose(log_prob(action, mean, sigma, reduction="sqrt"), expected / 16, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [10, 20, 50, 70])
def test_p03_ddim_at_eta_1_is_the_ddpm_posterior(steps: int, spacing: str, prediction: str) -> None:
    s = schedule(steps, spacing, prediction)
    for step in range(steps - 1):
        assert s.next_abar_S[step] == s.abar_S[step + 1] == ALPHAS[s.timesteps_S[step + 1]]
        abar, after = s.abar_S[step], s.next_abar_S[step]
        latents, output = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
        mean, sigma, x0 = ddim_step(output, latents, abar, after, eta=1.0, prediction_type=prediction)

        alpha = abar / after  # of the sub-sampled chain; Ho et al. 2020, eq. 7
        posterior = (after.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - after) * latents) / (1 - abar)
        assert torch.allclose(mean, posterior, rtol=0, atol=1e-12)
        assert abs(float(sigma) ** 2 - float((1 - after) / (1 - abar) * (1 - alpha))) < 1e-15
        assert s.sigma(step, eta=1.0) == pytest.approx(float(sigma), abs=1e-12)
        assert float(sigma) > 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("eta", "spacing"), [(0.0, "leading"), (1.0, "leading"), (0.5, "trailing")])
def test_step_equals_diffusers(eta: float, spacing: str, prediction: str) -> None:
    from diffusers import DDIMScheduler

    peer = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing=spacing,
        prediction_type=prediction,
    )
    peer.set_timesteps(20)  # a divisor of 1000: there, diffusers' next timestep is the schedule's
    s = schedule(20, spacing, prediction)
    assert s.timesteps_S.tolist() == peer.timesteps.tolist()
    for step in range(19):
        latents, output, noise = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
        expected = peer.step(output, int(s.timesteps_S[step]), latents, eta=eta, variance_noise=noise).prev_sample
        mean, sigma, _ = ddim_step(
            output, latents, s.abar_S[step], s.next_abar_S[step], eta=eta, prediction_type=prediction
        )
        assert torch.allclose(mean + sigma * noise, expected, atol=1e-5)  # diffusers' alphas are float32


def test_trailing_starts_at_the_noisiest_timestep_and_leading_where_diffusers_does() -> None:
    assert schedule(70).timesteps_S[0] == 999
    assert schedule(70, "leading").timesteps_S[[0, -1]].tolist() == [967, 1]
    assert schedule(1000).timesteps_S.tolist() == schedule(1000, "leading").timesteps_S.tolist()


def test_last_step_is_deterministic_where_the_scheduler_ends_at_one() -> None:
    s = make_schedule(ALPHAS, steps=5, prediction_type="epsilon", final_alpha_cumprod=1.0)
    assert s.sigma(4, eta=1.0) == 0
    assert s.sigma(3, eta=1.0) > 0
    assert schedule(5).sigma(4, eta=1.0) > 0


def test_p08_one_step_error_is_the_noise_error_times_c() -> None:
    s = schedule(70)
    for step in (0, 30, 69):
        abar, after = s.abar_S[step], s.next_abar_S[step]
        clean, noise, predicted = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
        latents = abar.sqrt() * clean + (1 - abar).sqrt() * noise
        target = after.sqrt() * clean + (1 - after).sqrt() * noise
        made, _, _ = ddim_step(predicted, latents, abar, after, eta=0.0, prediction_type="epsilon")
        c = math.sqrt(1 - after) - math.sqrt(after * (1 - abar) / abar)
        assert torch.allclose(target - made, c * (noise - predicted), rtol=0, atol=1e-12)


def test_velocity_and_noise_predictions_say_the_same() -> None:
    abar = torch.tensor(0.3, dtype=torch.float64)
    clean, noise = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    latents = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
    for output, prediction in ((noise, "epsilon"), (velocity, "v_prediction")):
        x0, eps = split_prediction(output, latents, abar, prediction_type=prediction)
        assert torch.allclose(x0, clean)
        assert torch.allclose(eps, noise)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        schedule(1001)
    with pytest.raises(ValueError, match="epsilon, v_prediction"):
        schedule(10, prediction="sample")
