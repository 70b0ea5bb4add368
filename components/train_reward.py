"""Reward training as a step."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_reward(
    settings: str,
    code_version: str,
    data_digest: str,
    store: str,
    data: dsl.Input[dsl.Dataset],
    reward: dsl.Output[dsl.Model],
) -> str:
    """Train the reward model; returns the digest of its adapter."""
    from vca.cli import step

    return step(
        "reward",
        settings=settings,
        code_version=code_version,
        inputs={"data": data.path},
        output=reward.path,
        store=store,
    )
