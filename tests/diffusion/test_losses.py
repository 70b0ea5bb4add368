"""P5, P8, P9: the clipped surrogate's gradient, the divergence, and the denoising losses."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vca.diffusion import losses
from vca.diffusion.schedule import ddim_step, log_prob

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def test_p05_at_ratio_1_the_gradient_is_the_policy_gradient() -> None:
    logp = torch.randn(6, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(6, dtype=torch.float64)
    loss, ratio = losses.ppo(logp, logp.detach(), advantages, clip=1e-4)
    assert torch.equal(ratio, torch.ones(6, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.mean(), logp)
    torch.testing.assert_close(gradient, -advantages / 6, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "expected"),
    [(1, 0.5, False), (-1, -0.5, False), (-1, 0.5, True), (1, -0.5, True), (1, 0.05, True), (-1, -0.05, True)],
)
def test_p05_the_clip_stops_the_gradient_only_where_it_would_overshoot(
    advantage: float, log_ratio: float, expected: bool
) -> None:
    logp = torch.tensor([log_ratio], requires_grad=True)
    loss, _ = losses.ppo(logp, torch.zeros(1), torch.tensor([float(advantage)]), clip=0.2)
    loss.sum().backward()
    assert (logp.grad.item() != 0) is expected


def test_p05_gradient_through_a_step_equals_finite_differences() -> None:
    """A two-parameter LoRA on a one-layer network, through the step's mean, its density and the surrogate."""
    torch.manual_seed(0)
    latents, action = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64)
    abar, after = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    advantages = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)

    def loss(lora: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
        output = 0.7 * latents + lora[0] * lora[1] * latents.tanh()
        mean, sigma, _ = ddim_step(output, latents, abar, after, eta=1.0, prediction_type="epsilon")
        logp = log_prob(action, mean, sigma)
        return losses.ppo(logp, logp.detach() if old is None else old, advantages, clip=10.0)[0].mean()

    lora = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        output = 0.7 * latents + lora[0] * lora[1] * latents.tanh()
        mean, sigma, _ = ddim_step(output, latents, abar, after, eta=1.0, prediction_type="epsilon")
        old = log_prob(action, mean, sigma)
    (gradient,) = torch.autograd.grad(loss(lora, None), lora)
    for n in range(2):
        nudge = torch.zeros(2, dtype=torch.float64)
        nudge[n] = 1e-6
        numeric = (loss(lora.detach() + nudge, old) - loss(lora.detach() - nudge, old)) / 2e-6
        assert float(gradient[n]) == pytest.approx(float(numeric), abs=1e-8)
        assert abs(float(numeric)) > 1e-3


def test_clip_range_means_the_same_trust_region_at_every_size_and_reduction() -> None:
    assert losses.clip_for(1e-4, elements=16384, reduction="mean") == pytest.approx(1e-4)
    for elements in (256, 16384, 36864):
        nats = losses.clip_for(1e-4, elements=elements, reduction="sum")
        assert nats == pytest.approx(1.6384)
        assert losses.clip_for(1e-4, elements=elements, reduction="mean") * elements == pytest.approx(nats)
        assert losses.clip_for(1e-4, elements=elements, reduction="sqrt") * elements**0.5 == pytest.approx(nats)


def test_p09_divergence_is_that_of_two_gaussians() -> None:
    mean, reference = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    sigma = torch.rand(3, 1, 1, 1, dtype=torch.float64) + 0.1
    shape = mean.shape
    expected = kl_divergence(
        Independent(Normal(mean, sigma.expand(shape)), 3), Independent(Normal(reference, sigma.expand(shape)), 3)
    )
    assert torch.allclose(losses.gaussian_kl(mean, reference, sigma), expected / 256, rtol=0, atol=1e-12)
    assert losses.gaussian_kl(mean, mean, sigma).tolist() == [0, 0, 0]
    assert torch.allclose(
        losses.prediction_distance(mean, reference), 2 * losses.gaussian_kl(mean, reference, torch.tensor(1.0))
    )


def test_p08_posterior_step_weight_is_equation_13_squared() -> None:
    abar, after = ALPHAS[[700, 300]], ALPHAS[[680, 290]]
    clean, noise, output = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    a, b = abar[:, None, None, None], after[:, None, None, None]
    latents = losses.add_noise(clean, noise, a)
    for prediction in ("epsilon", "v_prediction"):
        made, _, _ = ddim_step(output, latents, a, b, eta=0.0, prediction_type=prediction)
        error = ((losses.add_noise(clean, noise, b) - made) ** 2).flatten(1).mean(1)
        target = losses.noise_target(clean, noise, a, prediction_type=prediction)
        weights = losses.noise_weights(abar, after, weighting="posterior_step", prediction_type=prediction)
        assert torch.allclose(losses.noise_loss(output, target, weights), error, rtol=1e-9, atol=1e-12)
        # and eq. 5 with the true latent of the last round is the same thing
        same = losses.multi_round(output, latents, clean, noise, a, b, prediction_type=prediction)
        assert torch.allclose(same, error, rtol=1e-9, atol=1e-12)


def test_noise_weights_are_those_of_the_literature() -> None:
    abar = ALPHAS[[1, 500, 967]]
    snr = abar / (1 - abar)

    def weights(weighting: str, prediction: str) -> torch.Tensor:
        return losses.noise_weights(abar, abar, weighting=weighting, prediction_type=prediction)

    assert weights("uniform", "epsilon").tolist() == [1, 1, 1]
    assert torch.allclose(weights("min_snr", "epsilon"), snr.clamp(max=5) / snr)
    assert torch.allclose(weights("min_snr", "v_prediction"), snr.clamp(max=5) / (snr + 1))
    assert weights("x0", "epsilon")[2] == 5  # 146, clamped
    assert float(weights("x0", "epsilon")[0]) == pytest.approx(float(1 / snr[0]))


def test_refl_losses() -> None:
    rewards = torch.tensor([-1.0, 1.0, 3.0])
    assert losses.refl(rewards, kind="linear", margin=2.0).tolist() == [1.0, -1.0, -3.0]
    assert losses.refl(rewards, kind="hinge", margin=2.0).tolist() == [3.0, 1.0, 0.0]
