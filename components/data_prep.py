"""Data preparation as a step."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def data_prep(
    settings: str,
    code_version: str,
    watermark: str,
    store: str,
    data: dsl.Output[dsl.Dataset],
) -> str:
    """Write the data set; its digest is the output parameter that the later steps take."""
    from vca.cli import step

    return step(
        "data",
        settings=settings,
        code_version=code_version,
        watermark=watermark,
        inputs={},
        output=data.path,
        store=store,
    )
