import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vca.reward import losses

floats = st.floats(-20, 20, width=32)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def every(name: str, *, r_w: float, r_l: float, ref_w: float = 0.0, ref_l: float = 0.0, **changes: float) -> float:
    numbers = {"label_B": 1.0, "beta": 1.0, "smoothing": 0.0, "center": 0.0} | changes
    return float(
        losses.loss(
            name,  # type: ignore[arg-type]
            r_w_B=tensor(r_w),
            r_l_B=tensor(r_l),
            ref_w_B=tensor(ref_w),
            ref_l_B=tensor(ref_l),
            label_B=tensor(numbers.pop("label_B")),
            **numbers,
        )
    )


def test_dpo_is_log_2_where_nothing_changed_since_the_reference() -> None:
    assert every("dpo", r_w=1.3, r_l=-0.4, ref_w=1.3, ref_l=-0.4) == pytest.approx(math.log(2))
    assert every("dpo", r_w=1.3, r_l=-0.4, ref_w=1.3, ref_l=-0.4, smoothing=0.2) == pytest.approx(math.log(2))


@given(floats, floats, floats, floats, st.floats(-5, 5, width=32))
def test_a_constant_added_to_all_scores_changes_nothing(a: float, b: float, c: float, d: float, shift: float) -> None:
    for name in ("dpo", "bt", "btt"):
        before = every(name, r_w=a, r_l=b, ref_w=c, ref_l=d)
        assert every(name, r_w=a + shift, r_l=b + shift, ref_w=c + shift, ref_l=d + shift) == pytest.approx(
            before, abs=1e-9
        )


@given(floats, floats, floats, floats, st.floats(0.125, 10, width=32))
def test_swapping_the_pictures_turns_the_margin_round(a: float, b: float, c: float, d: float, beta: float) -> None:
    here = losses.margin(beta=beta, r_w_B=tensor(a), r_l_B=tensor(b), ref_w_B=tensor(c), ref_l_B=tensor(d))
    there = losses.margin(beta=beta, r_w_B=tensor(b), r_l_B=tensor(a), ref_w_B=tensor(d), ref_l_B=tensor(c))
    assert torch.equal(here, -there)
    for name in ("dpo", "bt", "btt"):
        turned = every(name, r_w=b, r_l=a, ref_w=d, ref_l=c, label_B=0.0, beta=beta)
        assert turned == pytest.approx(every(name, r_w=a, r_l=b, ref_w=c, ref_l=d, beta=beta), abs=1e-9)


def test_dpo_by_hand() -> None:
    u = 2.0 * ((0.7 - 0.1) - (0.2 - 0.5))
    expected = -0.9 * math.log(1 / (1 + math.exp(-u))) - 0.1 * math.log(1 / (1 + math.exp(u)))
    assert every("dpo", r_w=0.7, r_l=0.2, ref_w=0.1, ref_l=0.5, beta=2.0, smoothing=0.1) == pytest.approx(expected)


def test_only_dpo_looks_at_the_reference() -> None:
    for name, looks in (("dpo", True), ("bt", False), ("bce", False), ("btt", False)):
        with_reference = every(name, r_w=0.7, r_l=0.2, ref_w=3.0, ref_l=-1.0)
        assert (with_reference != every(name, r_w=0.7, r_l=0.2)) == looks


def test_bce_by_hand() -> None:
    expected = (math.log(1 + math.exp(-0.7)) + math.log(1 + math.exp(0.2))) / 2
    assert every("bce", r_w=0.7, r_l=0.2) == pytest.approx(expected)


@given(floats)
def test_the_three_outcomes_of_btt_add_up_to_1(u: float) -> None:
    total = sum(math.exp(-float(losses.btt(u_B=tensor(u), label_B=tensor(label)))) for label in (1.0, 0.5, 0.0))
    assert total == pytest.approx(1.0)


def test_btt_calls_equal_scores_a_tie_and_far_ones_a_win() -> None:
    def chance(u: float, label: float) -> float:
        return math.exp(-float(losses.btt(u_B=tensor(u), label_B=tensor(label))))

    assert chance(0.0, 0.5) == pytest.approx((5 - 1) / (5 + 1))
    assert chance(8.0, 1.0) > 0.98


def test_a_tie_pulls_scores_together() -> None:
    for name in ("dpo", "bt", "btt"):
        assert every(name, r_w=0.0, r_l=0.0, label_B=0.5) < every(name, r_w=1.0, r_l=0.0, label_B=0.5)


def test_centering_is_added_and_sees_what_shifts_hide() -> None:
    plain, shifted = every("bt", r_w=1.0, r_l=0.0), every("bt", r_w=6.0, r_l=5.0)
    assert shifted == pytest.approx(plain)
    assert every("bt", r_w=6.0, r_l=5.0, center=0.01) == pytest.approx(plain + 0.01 * 11**2)


def test_the_gradient_is_beta_sigmoid_of_minus_u() -> None:
    r_w, r_l = tensor(0.4).requires_grad_(), tensor(0.1).requires_grad_()
    u = losses.margin(beta=3.0, r_w_B=r_w, r_l_B=r_l, ref_w_B=tensor(0.0), ref_l_B=tensor(0.2))
    losses.dpo(u_B=u, label_B=tensor(1.0)).sum().backward()
    expected = 3.0 / (1 + math.exp(3.0 * 0.5))
    assert r_w.grad is not None
    assert r_l.grad is not None
    assert float(r_w.grad) == pytest.approx(-expected)
    assert float(r_l.grad) == pytest.approx(expected)
