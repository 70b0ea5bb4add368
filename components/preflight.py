"""Fail in seconds, not after hours; and fix what each stage's result will depend on."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preflight(preset: str, overrides: list[str], store: str) -> NamedTuple(  # type: ignore[valid-type]
    "Orders",
    [
        ("data", str),
        ("reward", str),
        ("diffusion", str),
        ("evaluation", str),
        ("report", str),
        ("watermark", str),
        ("data_code", str),
        ("reward_code", str),
        ("diffusion_code", str),
        ("evaluation_code", str),
        ("report_code", str),
    ],
):
    """Settings of each stage as JSON, the digest of the code and models it runs, and the watermark of the source data.

    The later steps take these as parameters: on a cluster that is all their cache sees of settings, code and data.
    """
    from collections import namedtuple

    from vca.cli import preflight_step

    orders = preflight_step(preset=preset, overrides=overrides, store=store)
    return namedtuple("Orders", orders)(**orders)
