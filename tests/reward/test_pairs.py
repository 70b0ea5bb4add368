from pathlib import Path

import pytest
from coloured_squares import pair, write

from vca.errors import DataError
from vca.progress import Quiet
from vca.reward.pairs import ImageTokens, Pair, batches, load_pairs


def made(*, hard: int, easy: int) -> list[Pair]:
    kinds = ["edited_prompt"] * hard + ["mismatch"] * easy
    return [
        Pair(prompt="p", w=0, l=1, label=1.0, weight=1.0, kind="k", negative_kind=kind, source="s") for kind in kinds
    ]


@pytest.mark.parametrize(
    ("hard", "easy", "mix"),
    [(50, 10, 0.5), (30, 300, 0.5), (100, 100, 0.5), (37, 500, 0.25), (80, 0, 0.5), (0, 64, 1.0)],
)
def test_batches_are_full_mixed_and_without_repeats(hard: int, easy: int, mix: float) -> None:
    pairs = made(hard=hard, easy=easy)
    plan = list(batches(pairs, size=8, mix=mix, seed="0"))
    assert plan
    assert all(len(batch) == 8 for batch in plan)
    used = [n for batch in plan for n in batch]
    assert len(used) == len(set(used))
    assert max(sum(n >= hard for n in batch) for batch in plan) <= mix * 8
    if easy / (hard + easy) <= mix:  # then only what doesn't fill a batch is left out
        assert len(plan) == (hard + easy) // 8


def test_another_pass_has_another_order() -> None:
    pairs = made(hard=50, easy=10)
    assert list(batches(pairs, size=8, mix=0.5, seed="0/0")) == list(batches(pairs, size=8, mix=0.5, seed="0/0"))
    assert list(batches(pairs, size=8, mix=0.5, seed="0/0")) != list(batches(pairs, size=8, mix=0.5, seed="0/1"))


@pytest.mark.parametrize(("hard", "easy"), [(5, 0), (0, 64)])
def test_pairs_that_fill_no_batch_say_what_to_change(hard: int, easy: int) -> None:
    with pytest.raises(DataError, match=r"reward\.negative_mix"):
        list(batches(made(hard=hard, easy=easy), size=8, mix=0.5, seed="0"))


def test_every_picture_is_kept_once_and_processes_share_the_pairs(tmp_path: Path) -> None:
    first, second = pair(0), pair(1)
    again = pair(2, prompt="other", positive=first.negative, negative=first.positive)
    folder = write(tmp_path / "d", [first, second, again])
    whole = load_pairs(folder, role="reward")
    assert len(whole.images) == 4
    assert (whole.pairs[2].w, whole.pairs[2].l) == (whole.pairs[0].l, whole.pairs[0].w)
    assert whole.images[whole.pairs[0].w] == first.positive.data
    shares = [load_pairs(folder, role="reward", rank=rank, world=2).pairs for rank in (0, 1)]
    assert [p.prompt for p in shares[0]] == [first.prompt, "other"]
    assert [p.prompt for p in shares[1]] == [second.prompt]


def test_a_role_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no validation pairs"):
        load_pairs(write(tmp_path / "d", [pair(0)]), role="validation")


def test_images_come_back_as_they_were(tmp_path: Path) -> None:
    pairs = load_pairs(write(tmp_path / "d", [pair(1)]), role="reward")
    images = pairs.images_BCHW([pairs.pairs[0].w, pairs.pairs[0].l], size=64)
    assert images.shape == (2, 3, 64, 64)
    assert images[0].mean((1, 2)).argmax() == 1  # pair 1 wants green


def test_cached_image_tokens_equal_fresh_ones(data: Path, settings: object) -> None:
    from vca.reward.model import RewardModel

    pairs = load_pairs(data, role="validation")
    reader = RewardModel(settings=settings()).reader  # type: ignore[operator]
    kept = ImageTokens(pairs, reader=reader, cache_mb=100, progress=Quiet(), name="x")
    fresh = ImageTokens(pairs, reader=reader, cache_mb=0, progress=Quiet(), name="x")
    assert kept.cache is not None
    assert fresh.cache is None
    which = [3, 0, 3, 5]
    assert float((kept.of(which) - fresh.of(which)).abs().max()) < 1e-5
