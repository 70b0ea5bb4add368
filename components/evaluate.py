"""Evaluation as a step."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    settings: str,
    code_version: str,
    data_digest: str,
    reward_digest: str,
    policy_digest: str,
    store: str,
    data: dsl.Input[dsl.Dataset],
    reward: dsl.Input[dsl.Model],
    policy: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
) -> str:
    """Compare base and trained; returns the digest of the figures."""
    from vca.cli import step

    return step(
        "evaluation",
        settings=settings,
        code_version=code_version,
        inputs={"data": data.path, "reward": reward.path, "policy": policy.path},
        output=evaluation.path,
        store=store,
    )
