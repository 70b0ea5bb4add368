"""The last word of every run, also of a failed one."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record(status: dsl.PipelineTaskFinalStatus, preset: str, overrides: list[str], run_dir: str) -> None:
    """Write run.json into `run_dir`: how the run ended, and with which settings."""
    from vca.cli import record_step

    record_step(
        run_dir=run_dir,
        state=status.state,
        error=status.error_message or "",
        preset=preset,
        overrides=overrides,
    )
