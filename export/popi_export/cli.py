"""``popi export``: a trained checkpoint as a bundle for the device, adapters on a known base or whole models."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any

import click

from popi_edge.cli.common import App, common
from popi_edge.errors import ConfigError, EngineError

PATH = click.Path(path_type=Path)
KINDS = (
    "GGUF: F32 F16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_1 Q4_0 IQ4_NL; ONNX: fp32 int8 int4. With commas (default: Q4_1, int4, "
    "or as a GGUF file is)."
)
WAYS = "ONNX from the GGUF, nothing requantized (direct, default), or from a Hugging Face folder by optimum."
WHOLE = ("formats", "quant", "adapters", "base", "calibration", "licence", "way")
"""Options that only an export of whole models has."""


@click.command("export")
@click.argument("checkpoint", metavar="CHECKPOINT", type=PATH)
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--to", "formats", metavar="FORMATS", help="gguf, onnx, or both with a comma (default: gguf).")
@click.option("--quant", metavar="KINDS", help=KINDS)
@click.option("--adapters", type=click.Choice(["merge", "keep"]), help="Into the weights, or beside (default: keep).")
@click.option("--base", type=PATH, help="Where the base of a PEFT adapter is.")
@click.option("--verify", type=click.Choice(["full", "quick", "off"]), help="Compare with the source (default: full).")
@click.option("--limits", metavar="FILE", type=PATH, help="Limits of the comparison (TOML; default: the recipe's).")
@click.option("--calibration", metavar="FILE", help="Text for an importance matrix; 'corpus': the project's own.")
@click.option("--onnx", "way", type=click.Choice(["direct", "optimum"]), help=WAYS)
@click.option("--licence", metavar="NAME", help="The licence of what is exported (Apache-2.0, …), or a file with it.")
@click.option("--sign", metavar="KEY", type=PATH, help="Sign the bundle by this private key.")
@click.option("--name", help="The bundle's name (default: the recipe's or the folder's).")
@click.option("--version", default="0.1.0", show_default=True, help="The bundle's version.")
@click.option("--evaluation", metavar="FILE", type=PATH, help="A table (JSON) for the manifest.")
@click.option("--candidates", metavar="FILE", type=PATH, help="Sentences that a run's summaries are made of (JSON).")
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@common
def export(app: App, *, checkpoint: Path, out: Path, **options: Any) -> None:
    """Write the bundle's folder OUT from CHECKPOINT.

    CHECKPOINT is one of our runs (without the options for whole models: for each role one adapter file for both
    engines, on a base that devices know), a Hugging Face folder (llama, qwen2, qwen3, gemma3), a PEFT adapter's folder,
    or a GGUF file. An export that was interrupted goes on where it was when the same command is given again.
    """
    from popi_export import bundle

    need("gguf", "filelock")
    if (checkpoint / "manifest.json").is_file() and not any(checkpoint.glob("*.safetensors")):
        raise ConfigError(f"{checkpoint} is a bundle; give what it was made from, or a GGUF file in it")
    bundle.refuse_taken(out, options["force"])
    private = _private(options["sign"])
    table = bundle.read_evaluation(options["evaluation"]) if options["evaluation"] is not None else None
    if options["candidates"] is not None:
        options["candidates"] = bundle.read_candidates(options["candidates"])
    if _is_run(checkpoint) and not any(options[name] is not None for name in WHOLE):
        _adapters(app, checkpoint, out, options, table, private)
    else:
        _whole(app, checkpoint, out, options, table, private)


def need(*modules: str) -> None:
    """Raises EngineError naming what is not installed."""
    if missing := [m for m in modules if importlib.util.find_spec(m) is None]:
        raise EngineError(f"{' and '.join(missing)} not installed; run: pip install 'popi-edge[training,export]'")


def _private(path: Path | None) -> Any:
    if path is None:
        return None
    from popi_edge.models.signing import read_private

    return read_private(path)


def _is_run(path: Path) -> bool:
    """Whether it is none of the things that are told by a file: a GGUF, an adapter's or a model's folder."""
    return not (path.suffix == ".gguf" or (path / "adapter_config.json").exists() or (path / "config.json").exists())


def _adapters(app: App, checkpoint: Path, out: Path, options: dict[str, Any], table: Any, private: Any) -> None:
    """A run's adapters on a base that devices know."""
    from popi_export import bundle

    need("torch")
    read = bundle.read(checkpoint, app.settings)
    name, how = options["name"] or read.recipe.name, _how(options)
    manifest = bundle.export(
        read, out, app.settings, name=name, version=options["version"], evaluation=table, force=options["force"],
        candidates=options["candidates"] or (),
        private=private, judge=_judge(app, checkpoint, read, how, options["limits"]) if how != "off" else None,
    )  # fmt: skip
    if read.step < read.recipe.train.steps:
        app.note(f"the run is at step {read.step} of {read.recipe.train.steps}")
    files = ", ".join(f"{r['file']} ({r['size']:,} bytes)" for r in manifest["roles"].values() if r)
    compared = "" if how == "off" else ", compared with the run"
    signed = ", signed" if private is not None else ""
    text = f"{out}: {manifest['name']} {manifest['version']}, {files}, read back alike{compared}{signed}"
    app.emit({"folder": str(out), **manifest}, text)


def _how(options: dict[str, Any]) -> str:
    """How much is compared. Raises ConfigError for limits of nothing."""
    if options["limits"] is not None and options["verify"] == "off":
        raise ConfigError("--limits without verifying: leave out --verify off")
    return str(options["verify"] or "full")


def _judge(app: App, checkpoint: Path, read: Any, how: str, limits: Path | None) -> Any:
    """Compares a run's adapter files with the run, by the limits given or its recipe's."""
    from popi_export import checks, source
    from popi_training.limits import read as read_limits

    judged_by = read_limits(limits) if limits is not None else read.recipe.limits

    def judge(files: Any) -> dict[str, Any]:
        found = source.of_checkpoint(checkpoint, read)
        return checks.told(
            checks.kept(found, files, how=checks.HOW[how], limits=judged_by, tell=app.note), how, tell=app.note
        )

    return judge


def _whole(app: App, checkpoint: Path, out: Path, options: dict[str, Any], table: Any, private: Any) -> None:
    """Whole models from any checkpoint."""
    from popi_export import pipeline, plan, source

    if options["candidates"] is not None:
        raise ConfigError("--candidates is for a run's adapters; whole models have none")
    if _is_run(checkpoint):
        need("torch")
    found = source.read(checkpoint, app.settings, base=options["base"])
    wanted = plan.make(
        found, formats=words(options["formats"]), kinds=words(options["quant"]), adapters=options["adapters"],
        name=options["name"] or (found.run.recipe.name if found.run is not None else None), version=options["version"],
        verify=_how(options), limits=options["limits"], calibration=options["calibration"],
        licence=options["licence"], base=options["base"], way=options["way"],
        command=command(checkpoint, options),
    )  # fmt: skip
    manifest = pipeline.export(
        found, wanted, out, private=private, evaluation=table, force=options["force"], tell=app.note
    )
    sizes = {m["file"]: sum(e["size"] for e in (m, *m.get("beside", ()))) for m in manifest["models"]}
    files = ", ".join(f"{file} ({size:,} bytes)" for file, size in sizes.items())
    signed = ", signed" if private is not None else ""
    if unknown := [part for part, licence in manifest["licences"].items() if licence == "not known"]:
        app.note(f"the licence of the {' and the '.join(unknown)} is not known; --licence says it")
    app.emit({"folder": str(out), **manifest}, f"{out}: {manifest['name']} {manifest['version']}, {files}{signed}")


def words(text: str | None) -> list[str]:
    """Words with commas or spaces between them."""
    return (text or "").replace(",", " ").split()


def command(checkpoint: Path, options: dict[str, Any]) -> str:
    """The command that makes this bundle again, with names in place of paths."""
    said = ["popi", "export", checkpoint.resolve().name, "OUT"]
    for name, value in options.items():
        if value is None or value is False or name in ("force", "sign", "evaluation"):
            continue
        word = {"formats": "--to", "way": "--onnx"}.get(name, f"--{name}")
        said += [word, value.resolve().name if isinstance(value, Path) else Path(str(value)).name]
    return shlex.join(said)
