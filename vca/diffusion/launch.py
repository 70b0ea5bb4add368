"""Starting several training processes on this machine with torchrun, and being one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from vca import errors
from vca.diffusion.settings import DiffusionSettings
from vca.errors import Interrupted, ResourceError, VcaError
from vca.progress import for_stream

_ERROR_FILE = "error.json"


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def start(config: DiffusionSettings, *, inputs: dict[str, Path], output: Path) -> None:
    """Run the stage in `config.processes` processes and wait; a SIGTERM is passed on. Raises what they raised."""
    with tempfile.TemporaryDirectory() as folder:
        order = Path(folder, "order.json")
        order.write_text(
            json.dumps(
                {
                    "config": config.model_dump(mode="json"),
                    "inputs": {name: str(path) for name, path in inputs.items()},
                    "output": str(output),
                }
            )
        )
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, f"--nproc-per-node={config.processes}", "-m", "vca.diffusion.launch", str(order)]
        process = subprocess.Popen(command)
        main = threading.current_thread() is threading.main_thread()
        before: Any = signal.signal(signal.SIGTERM, lambda *_: process.terminate()) if main else None
        try:
            code = process.wait()
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
        if code:
            _raise_again(Path(folder, _ERROR_FILE), code)


def _raise_again(report: Path, code: int) -> None:
    if not report.is_file():
        raise ResourceError(f"a training process ended with code {code}; its own output above says why")
    told = json.loads(report.read_text())
    raise getattr(errors, told["kind"])(told["text"])


def main(order: Path) -> None:
    """One of the processes."""
    from vca.diffusion.train import run

    told = json.loads(order.read_text())
    try:
        run(
            DiffusionSettings.model_validate(told["config"]),
            inputs={name: Path(path) for name, path in told["inputs"].items()},
            output=Path(told["output"]),
            progress=for_stream(prefix="[diffusion] "),
        )
    except VcaError as error:
        if os.environ["RANK"] == "0" or not isinstance(error, Interrupted):
            order.with_name(_ERROR_FILE).write_text(json.dumps({"kind": type(error).__name__, "text": str(error)}))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
