"""One model server in this process, as the cluster's containers start it.

python -m serving generator --policy /mnt/models --http_port 8080 --grpc_port 8081
python -m serving scorer --reward /mnt/models --http_port 8080 --grpc_port 8081
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from vca.cli import guard
from vca.settings import Settings, load


def main() -> None:
    born = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("server", choices=["generator", "scorer"])
    parser.add_argument("--policy", type=Path, help="folder of the policy adapter; none: the untrained base")
    parser.add_argument("--reward", type=Path, help="folder of the reward adapter, which the scorer needs")
    parser.add_argument("--preset", default="local")
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="a setting, as in `vca run`")
    parser.add_argument("--http_port", type=int, default=8080)
    parser.add_argument("--grpc_port", type=int, default=8081)
    parser.add_argument("--with_parent", action="store_true", help="end when the process that started this one ends")
    given, _ = parser.parse_known_args()  # the rest is KServe's
    if given.server == "scorer" and given.reward is None:
        parser.error("the scorer needs --reward FOLDER")
    with guard():
        serve(given, load(preset=given.preset, file=given.settings, overrides=given.sets), born=born)


def serve(given: argparse.Namespace, settings: Settings, *, born: float) -> None:
    import torch

    from serving.model import VcaModel
    from serving.parent import end_with_parent
    from serving.server import Server

    set_up_logs(quiet=given.with_parent)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    routes = {}
    model: VcaModel[Any]
    if given.server == "generator":
        from serving import openai_images, refinements
        from serving.generator import Generator

        generator = model = Generator(settings=settings, policy=given.policy, device=device)

        def generator_routes(app: Any) -> None:
            openai_images.routes(generator)(app)
            refinements.routes(generator)(app)

        routes["routes"] = generator_routes
    else:
        from serving.reward_scorer import Scorer

        model = Scorer(settings=settings, folder=given.reward, device=device)
    model.born = born
    if given.with_parent:
        end_with_parent()
    Server(model, settings=settings.serving, http_port=given.http_port, grpc_port=given.grpc_port, **routes).run()


def set_up_logs(*, quiet: bool) -> None:
    """Who writes into the log, and from which level on. quiet: a person reads along, as under `vca serve`."""
    from kserve.logging import KSERVE_LOG_CONFIG, configure_logging
    from kserve.model_server import args

    # On import it advises to install a package that would fetch kernels over the network at run time.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # KServe's choice
    if args.log_config_file is not None:  # --log_config_file, which is KServe's: somebody knows better
        return
    ours = {"handlers": ["kserve"], "level": "INFO", "propagate": False}
    loggers = {**KSERVE_LOG_CONFIG["loggers"], "serving": ours, "vca": ours}
    if quiet:
        loggers = {name: {**logger, "level": "WARNING"} for name, logger in loggers.items()}
    configure_logging({**KSERVE_LOG_CONFIG, "loggers": loggers})


if __name__ == "__main__":
    main()
