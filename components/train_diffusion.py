"""Diffusion training as a step."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_diffusion(
    settings: str,
    code_version: str,
    data_digest: str,
    reward_digest: str,
    store: str,
    data: dsl.Input[dsl.Dataset],
    reward: dsl.Input[dsl.Model],
    policy: dsl.Output[dsl.Model],
) -> str:
    """Train the policy; returns the digest of its adapter."""
    from vca.cli import step

    return step(
        "diffusion",
        settings=settings,
        code_version=code_version,
        inputs={"data": data.path, "reward": reward.path},
        output=policy.path,
        store=store,
    )
