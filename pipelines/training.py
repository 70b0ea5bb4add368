"""The loop as a Kubeflow pipeline: the same graph on a laptop and on a cluster.

Every step takes as parameters its settings, the digest of the code it runs and the digests of its inputs. A cluster's
cache sees only parameters and the names of artifacts, never their contents, so what isn't a parameter would be served
stale. Preflight, the report and the record are never cached: they say what is the case now.
"""

from kfp import dsl

from components.data_prep import data_prep
from components.evaluate import evaluate
from components.preflight import preflight
from components.record import record
from components.report import report
from components.train_diffusion import train_diffusion
from components.train_reward import train_reward


@dsl.pipeline(name="vca-training", description="Data preparation, reward training, diffusion training, evaluation.")
def training(preset: str = "local", overrides: list[str] = [], store: str = "", run_dir: str = "") -> None:  # noqa: B006
    """Train on the data that `preset` and `overrides` name, and report.

    Args:
        preset: local, recommended or paper.
        overrides: settings that differ, as "diffusion.learning_rate=1e-4".
        store: a folder that outlives the run, for finished results and for attempts to go on from; empty for none.
        run_dir: where the record of this run goes.
    """
    last = record(preset=preset, overrides=overrides, run_dir=run_dir).set_caching_options(False)
    with dsl.ExitHandler(last):
        plan = preflight(preset=preset, overrides=overrides, store=store).set_caching_options(False)
        data = data_prep(
            settings=plan.outputs["data"],
            code_version=plan.outputs["data_code"],
            watermark=plan.outputs["watermark"],
            store=store,
        )
        reward = train_reward(
            settings=plan.outputs["reward"],
            code_version=plan.outputs["reward_code"],
            data_digest=data.outputs["Output"],
            store=store,
            data=data.outputs["data"],
        )
        policy = train_diffusion(
            settings=plan.outputs["diffusion"],
            code_version=plan.outputs["diffusion_code"],
            data_digest=data.outputs["Output"],
            reward_digest=reward.outputs["Output"],
            store=store,
            data=data.outputs["data"],
            reward=reward.outputs["reward"],
        )
        figures = evaluate(
            settings=plan.outputs["evaluation"],
            code_version=plan.outputs["evaluation_code"],
            data_digest=data.outputs["Output"],
            reward_digest=reward.outputs["Output"],
            policy_digest=policy.outputs["Output"],
            store=store,
            data=data.outputs["data"],
            reward=reward.outputs["reward"],
            policy=policy.outputs["policy"],
        )
        report(
            settings=plan.outputs["report"],
            code_version=plan.outputs["report_code"],
            data_digest=data.outputs["Output"],
            reward_digest=reward.outputs["Output"],
            policy_digest=policy.outputs["Output"],
            evaluation_digest=figures.outputs["Output"],
            store="",
            data=data.outputs["data"],
            reward=reward.outputs["reward"],
            policy=policy.outputs["policy"],
            evaluation=figures.outputs["evaluation"],
        ).set_caching_options(False)
