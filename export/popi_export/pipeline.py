"""``popi export`` of whole models: stages in a work folder, then the bundle's folder by one rename.

    source → F32 GGUF → quantizations → adapters → ONNX → files beside → verify → texts, licences → manifest → OUT

A run that was killed or refused goes on with the stages that are done. Not covered: several exports into one bundle.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from popi_edge.errors import ConfigError, ModelError
from popi_edge.models import bundle as bundles
from popi_edge.models import onnx_check
from popi_edge.models.gguf import Gguf
from popi_edge.models.manifest import MANIFEST, MAX_MANIFEST, WHOLE
from popi_edge.prompts import CONTRACT
from popi_export import beside, card, checks, genai, licences, plan, quantize, stages, to_onnx
from popi_export.activations import collect
from popi_export.bundle import drafted, entry, refuse_taken, training
from popi_export.imatrix import ImportanceMatrix, calibration_text
from popi_export.plan import Plan
from popi_export.source import Source
from popi_export.stages import Stage, Work
from popi_export.to_gguf import write_lora, write_model
from popi_training.limits import Limits
from popi_training.limits import read as read_limits

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Tell = Callable[[str], None]
ROLE = "infer"
"""The role of an adapter of which nobody says what it is for."""
PROJECT = "corpus"
"""As calibration text: the project's own."""


class Export:
    """One export: the source, what is wanted of it, and the stages that are done. What is wrong with what was asked
    for is said before there is a work folder."""

    work: Work

    def __init__(self, source: Source, wanted: Plan) -> None:
        self.source, self.plan = source, wanted
        if wanted.verify != "off":
            checks.ready()
        self.limits, self.text = self._limits(), self._text()
        self.licences = licences.find(source, wanted.base, wanted.licence)
        self.fingerprint = plan.fingerprint(source, wanted.base)
        self.models: dict[str, Stage] = {}
        self.graphs: dict[str, Stage] = {}

    def inputs(self, *parents: Stage, **more: Any) -> dict[str, Any]:
        """What a stage depends on: the source, other stages' files, and settings."""
        return {"source": self.fingerprint, "from": [dict(p.files) for p in parents], **more}

    def run(self, work: Work) -> None:
        """Every stage, in order."""
        self.work = work
        self.plain = self.work.stage("model-F32", self.inputs(merge=self.plan.merge), self._plain)
        matrix = self._importance()
        for kind in self.plan.made:
            self.models[kind] = self._quantized(kind, matrix)
        half = not {"F32", "fp32"} & {*self.plan.gguf, *self.plan.onnx}  # a float model would lose by rounding alone
        self.adapters = self.work.stage(
            "adapters", self.inputs(merge=self.plan.merge, half=half), lambda folder: self._adapters(folder, half)
        )
        for kind in sorted(self.plan.onnx, key=("fp32", "int8", "int4").index):
            self.graphs[kind] = self._graph(kind)
        self.graphs = {kind: self.graphs[kind] for kind in self.plan.onnx}
        if self.plan.onnx:
            settings = {"onnx": self.plan.onnx, "way": self.plan.way}
            self.beside = self.work.stage("beside", self.inputs(self.plain, **settings), self._beside)
        self.verified = self._verified() if self.plan.verify != "off" else None

    @property
    def plain_file(self) -> Path:
        return self.plain["model-F32.gguf"]

    def roles(self) -> dict[str, str]:
        """Role → the source's adapter that is kept for it."""
        if self.plan.merge is not None:
            return {}
        return {(name if name in ("infer", "generate") else ROLE): name for name in self.source.adapters}

    def _plain(self, folder: Path) -> None:
        self.work.tell(f"reading {self.source.path}")
        write_model(folder / "model-F32.gguf", self.source, "F32", merge=self.plan.merge)

    def _text(self) -> str | None:
        """What an importance matrix is made from, where one is wanted. Raises ConfigError."""
        if self.plan.calibration is None:
            return None
        file = None if self.plan.calibration == PROJECT else Path(self.plan.calibration).expanduser()
        return calibration_text(0, file)

    def _importance(self) -> Stage | None:
        if (text := self.text) is None:
            return None

        def make(folder: Path) -> dict[str, Any]:
            self.work.tell("running calibration text")
            matrix = collect(self.plain_file, text)
            matrix.save(folder / "imatrix.npz")
            return {"tokens": matrix.tokens, "text": matrix.text}

        return self.work.stage("imatrix", self.inputs(self.plain, text=text), make)

    def _quantized(self, kind: str, matrix: Stage | None) -> Stage:
        """A quantization; a GGUF that has it already is copied bit for bit."""
        file, own = f"model-{kind}.gguf", self.source.file
        kept = own is not None and self.plan.own == kind
        had = plan.kind_of(own) if own is not None else None
        weighed = matrix if matrix is not None and kind not in ("F32", "F16") and not kept else None

        def make(folder: Path) -> dict[str, Any]:
            self.work.tell(f"making {kind}")
            if kept and own is not None:
                shutil.copyfile(own.path, folder / file)  # never a second name of the user's own file
            if kind == "F32" and not kept:
                copy(self.plain_file, folder / file)
            if kept or kind == "F32":
                types = quantize.types(Gguf(folder / file))
            else:
                importance = ImportanceMatrix.load(weighed["imatrix.npz"]) if weighed else None
                types = quantize.quantize(self.plain_file, folder / file, kind, imatrix=importance)
            note = [] if kept else [quantize.explain(Gguf(folder / file), kind)]
            if not kept and not {had, kind} & {None, "F32", "F16"}:
                note.append(f"{kind} is made from {had} weights, which rounds them once more")
                self.work.tell(note[-1])
            return {"types": dict(types), "note": "; ".join(filter(None, note))}

        parents = [self.plain, *([weighed] if weighed else [])]
        return self.work.stage(f"gguf-{kind}", self.inputs(*parents, kind=kind, kept=kept), make)

    def _adapters(self, folder: Path, half: bool) -> None:
        for role, name in self.roles().items():
            write_lora(folder / f"{role}.gguf", self.source.adapters[name], self.source.config, half=half)


    def _beside(self, folder: Path) -> None:
        beside.write(self.source, self.plain_file, folder)
        if self.plan.way == "direct":
            plain = Gguf(self.plain_file)
            genai.write(folder, plain, f"model-{self.plan.onnx[-1]}.onnx", tuple(beside.end_ids(plain)))

    def _graph(self, kind: str) -> Stage:
        """An ONNX model from the GGUF that has its quantization, the kept adapters beside it."""
        base = self.plan.onnx_from(kind) if self.plan.way == "direct" else "F32"
        parent = self.models[base] if self.plan.way == "direct" else self.plain
        whole = self.graphs.get("fp32") if self.plan.way == "optimum" else None

        def make(folder: Path) -> dict[str, Any]:
            self.work.tell(f"making {kind}")
            if self.plan.way == "optimum":
                from popi_export import optimum_way

                assert self.source.folder is not None
                file = whole["model-fp32.onnx"] if whole is not None else None
                optimum_way.export(self.source.folder, folder, cast(to_onnx.Kind, kind), whole=file)
            else:
                kept = {role: self.adapters[f"{role}.gguf"] for role in self.roles()}
                to_onnx.export(parent[f"model-{base}.gguf"], folder, cast(to_onnx.Kind, kind), adapters=kept)
            return {"types": onnx_check.check(folder / f"model-{kind}.onnx").types}

        return self.work.stage(f"onnx-{kind}", self.inputs(parent, self.adapters, way=self.plan.way), make)

    def _limits(self) -> Limits:
        """Those of the file that was given, else of the run's own recipe, else the defaults. Raises ConfigError."""
        if self.plan.limits is not None:
            return read_limits(self.plan.limits)
        return cast(Limits, self.source.run.recipe.limits) if self.source.run is not None else Limits()

    def _verified(self) -> Stage:
        """Everything written compared with the source. Raises ModelError where a limit does not hold."""
        limits = self.limits
        written = checks.Written(
            plain=self.plain_file,
            gguf={kind: self.models[kind][f"model-{kind}.gguf"] for kind in self.plan.gguf},
            onnx={k: tuple(s[name] for name in graph_files(k, s)) for k, s in self.graphs.items()},
            adapters={role: self.adapters[f"{role}.gguf"] for role in self.roles()},
            onnx_adapters={(r, k): s[f"{r}-{k}.onnx_adapter"] for k, s in self.graphs.items() for r in self.roles()},
            tokenizer=self.beside["tokenizer.json"] if self.graphs else None,
        )

        def measure(folder: Path) -> None:
            report = checks.compare(
                self.source, written, merge=self.plan.merge, roles=self.roles(), how=checks.HOW[self.plan.verify],
                limits=limits, tell=self.work.tell,
            )  # fmt: skip
            checks.keep(report, folder)

        def judge(folder: Path) -> dict[str, Any]:
            report = checks.judged(measured[checks.TABLE], written, limits)
            checks.write(report, folder)
            return {"failures": list(report.failures), "reference": report.reference, "how": self.plan.verify}

        parents = [*self.models.values(), *self.graphs.values(), self.adapters]
        settings = {"how": self.plan.verify, "merge": self.plan.merge}
        measured = self.work.stage("measured", self.inputs(*parents, **settings), measure)
        done = self.work.stage("verify", self.inputs(measured, limits=asdict(limits)), judge)
        if failures := done.facts["failures"]:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise ModelError(
                f"a limit does not hold, so there is no bundle: {failures[0]}{more}; the table is "
                f"{done[checks.LINES]}; what is done stays there: the same command goes on, --limits FILE sets others"
            )
        return done


def graph_files(kind: str, stage: Stage) -> list[str]:
    """An ONNX model's file, and the one that holds its weights where there is one."""
    name = f"model-{kind}.onnx"
    return [name, *([f"{name}.data"] if f"{name}.data" in stage.files else [])]


def copy(origin: Path, target: Path) -> None:
    """A file once more, as a second name of the same bytes where the disk can. Raises OSError."""
    try:
        os.link(origin, target)
    except OSError:
        shutil.copyfile(origin, target)


def export(
    source: Source, wanted: Plan, out: Path, *, private: Ed25519PrivateKey | None = None,
    evaluation: Mapping[str, Any] | None = None, force: bool = False, tell: Tell = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the bundle's folder ``out`` and return its manifest.

    Raises ConfigError, ModelError, StoreError, EngineError; ``out`` is as it was then, and what is done stays in the
    work folder beside it, for the next call to go on with.
    """
    refuse_taken(out, force)
    check_template(source)
    done = Export(source, wanted)
    with stages.work(out, tell) as work:
        done.run(work)
        with drafted(out) as draft:
            manifest = _assemble(done, draft, evaluation)
            _write_manifest(draft, manifest)
            try:
                verified = bundles.verified(draft)
            except ModelError as e:
                raise ModelError(f"{out} was not written, as it did not read back (is the disk full?): {e}") from None
            if private is not None:
                bundles.write_signature(verified, private)
        work.drop()
    return manifest


def check_template(source: Source) -> str:
    """The card's example under the source's chat template. Raises ModelError where it fails."""
    fields = {key: value for key, _, value in source.fields}
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    named = {f"{name}_token": str(tokens[i]) if i is not None else "" for name, i in ids.items()}
    return card.prompt(fields["tokenizer.chat_template"], named)


def _assemble(done: Export, draft: Path, evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Put the stages' files and the texts into the draft; returns the manifest's table."""
    models, roles = _model_entries(done, draft), _role_entries(done, draft)
    ggufs = [m["file"] for m in models if m["format"] == "gguf"]
    model = Gguf(done.plain_file)
    made: dict[str, Any] = {
        "source": plan.described(done.source, done.plan.base), "kind": done.source.kind, "sha256": done.fingerprint,
        "architecture": done.source.config.architecture, "merged": done.plan.merge,
        "onnx": done.plan.way if done.graphs else None, "command": done.plan.command,
        "exported_with": stages.versions(),
    }  # fmt: skip
    manifest: dict[str, Any] = {
        "format": WHOLE, "name": done.plan.name, "version": done.plan.version, "prompt_contract": CONTRACT,
        "models": models, "default": ggufs[0] if ggufs else None, "roles": roles, "files": [],
        "context_length": done.source.config.context, "chat_template": model.fields["tokenizer.chat_template"],
        "made_from": made, "licences": dict(done.licences.names),
    }  # fmt: skip
    if done.source.kind == "run":
        manifest["training"] = training(done.source.run)
    elif not done.source.adapters:
        manifest["decoding"] = bundles.ZERO_SHOT
    if done.verified is not None:
        manifest["verified"] = {k: done.verified.facts[k] for k in ("how", "reference")} | {"table": "table.json"}
    if evaluation is not None:
        manifest["evaluation"] = dict(evaluation)
    texts = _texts(done, manifest, model)
    for name, text in texts.items():
        (draft / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    manifest["files"] = [entry(draft / name) for name in sorted(texts)]
    return manifest


def _model_entries(done: Export, draft: Path) -> list[dict[str, Any]]:
    models = []
    for kind in done.plan.gguf:
        stage, name = done.models[kind], f"model-{kind}.gguf"
        copy(stage[name], draft / name)
        facts = {"format": "gguf", "quantization": kind, "tensor_types": stage.facts["types"]}
        models.append(entry(draft / name) | facts)
    for kind, stage in done.graphs.items():
        names = graph_files(kind, stage)
        for name in names:
            copy(stage[name], draft / name)
        facts = {"format": "onnx", "quantization": kind, "tensor_types": stage.facts["types"]}
        models.append(entry(draft / names[0]) | facts | {"beside": [entry(draft / name) for name in names[1:]]})
    return models


def _role_entries(done: Export, draft: Path) -> dict[str, Any]:
    roles: dict[str, Any] = {"infer": None, "generate": None}
    for role in done.roles():
        copy(done.adapters[f"{role}.gguf"], draft / f"{role}.gguf")
        roles[role], onnx = entry(draft / f"{role}.gguf"), []
        for kind, stage in done.graphs.items():
            name = f"{role}-{kind}.onnx_adapter"
            copy(stage[name], draft / name)
            onnx.append(entry(draft / name) | {"model": f"model-{kind}.onnx"})
        roles[role] |= {"onnx": onnx} if onnx else {}
    return roles


def notes(done: Export) -> list[str]:
    """What somebody who uses the bundle should know."""
    found = [*done.source.notes, *(s.facts["note"] for s in done.models.values() if s.facts.get("note"))]
    if done.source.kind == "peft":
        found.append(f"The adapter is kept for the role {ROLE}, or merged: nothing in it says what it is for.")
    if done.plan.calibration is not None:
        found.append("Quantized with an importance matrix from calibration text.")
    return found


def _texts(done: Export, manifest: Mapping[str, Any], model: Gguf) -> dict[str, str | bytes]:
    """The further files by name."""
    texts: dict[str, str | bytes] = {}
    if done.plan.onnx:
        texts |= {name: done.beside[name].read_bytes() for name in done.beside.files}
    table = "Not compared with its source (`--verify off`)."
    if done.verified is not None:
        texts |= {name: done.verified[name].read_bytes() for name in done.verified.files}
        table = done.verified["table.md"].read_text("utf-8")
    changes = ["the format and the quantization of the weights (MODEL_CARD.md)"]
    changes += [f"the adapter {done.plan.merge} was merged into them"] if done.plan.merge else []
    about = {**manifest, "source": manifest["made_from"]["source"], "changes": changes}
    texts |= licences.files(done.licences, about)
    texts["README.md"] = card.readme(manifest, check_template(done.source))
    texts["MODEL_CARD.md"] = card.model_card(manifest, table, notes(done))
    return texts


def _write_manifest(draft: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    if len(text.encode()) > MAX_MANIFEST:
        raise ConfigError(f"the manifest would have {len(text.encode()):,} bytes; the evaluation is too large")
    (draft / MANIFEST).write_text(text, "utf-8")
