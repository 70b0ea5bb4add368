"""The report as a step."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    settings: str,
    code_version: str,
    data_digest: str,
    reward_digest: str,
    policy_digest: str,
    evaluation_digest: str,
    store: str,
    data: dsl.Input[dsl.Dataset],
    reward: dsl.Input[dsl.Model],
    policy: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
) -> str:
    """Write report.json and report.html; returns their digest."""
    from vca.cli import step

    return step(
        "report",
        settings=settings,
        code_version=code_version,
        inputs={"data": data.path, "reward": reward.path, "policy": policy.path, "evaluation": evaluation.path},
        output=report.path,
        store=store,
    )
