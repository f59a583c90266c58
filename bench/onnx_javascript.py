"""The exported ONNX files in onnxruntime-node, onnxruntime-web and transformers.js against Python on the same files.

python -m bench.onnx_javascript MODEL.onnx [ADAPTER.gguf BASE.gguf] --modules NODE_MODULES, with tokenizer.json,
tokenizer_config.json and config.json beside the model. The packages are npm's; what is not installed is listed under
``not_covered``. Browsers: ``bench.onnx_browser``. Not covered: phones.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.common import show
from popi_edge.cli.common import at_least, launch
from popi_edge.engines.adapter import fused, hooks_of, read_adapter
from popi_edge.engines.onnx_graph import GROUPS
from popi_edge.engines.onnx_shape import Shape
from popi_edge.models.gguf import Gguf

SCRIPTS = {
    "onnxruntime-node": "onnx_javascript.mjs",
    "onnxruntime-web": "onnx_javascript.mjs",
    "@huggingface/transformers": "transformers_js.mjs",
}
TEXT = "<|im_start|>user\nWhat is a heat pump, and what is it good for?<|im_end|>\n<|im_start|>assistant\n"
Floats = NDArray[np.float32]
Arrays = Mapping[str, Floats]


def read_ids(model: Path, text: str) -> list[int]:
    """A text's tokens by the tokenizer.json beside a model."""
    tokenizer = Tokenizer.from_file(str(model.with_name("tokenizer.json")))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def refuse_missing(parser: argparse.ArgumentParser, model: Path) -> None:
    """Wrong usage where the model or the tokenizer beside it is no file."""
    for path in (model, model.with_name("tokenizer.json")):
        if not path.is_file():
            parser.error(f"there is no file {path}")


def missing(runtime: str, modules: Path) -> str | None:
    """Why a runtime cannot be tried, or None."""
    if shutil.which("node") is None:
        return f"{runtime}: there is no node"
    return None if (modules / runtime).is_dir() else f"{runtime}: not installed"


def adapter_arrays(adapter: Path, base: Path) -> dict[str, Floats]:
    """A GGUF adapter's A and B by the names of the model's inputs."""
    gguf = Gguf(base)
    shape, read = Shape.of(gguf), read_adapter(adapter, gguf)
    out: dict[str, Floats] = {}
    for hook in hooks_of(read, adapter):
        layer, group = hook.split(".")
        sizes = [shape.of_tensor(f"blk.{layer}.{p}.weight") for p in GROUPS[group]]
        a, b = fused(read, shape, hook, sizes[0][1], sum(n for n, _ in sizes))
        out |= {f"lora.{hook}.a": a, f"lora.{hook}.b": b}
    return out


def in_python(model: Path, ids: Sequence[int], steps: int, adapter: Arrays) -> tuple[list[int], Floats]:
    """Greedy tokens, and the last logits of every step [steps, V]."""
    import onnxruntime as ort  # after popi_edge.engines, which switches off what it would send home

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    inputs = {i.name: i.shape for i in session.get_inputs()}
    past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
            for name, shape in inputs.items() if name.startswith("past_key_values.")}  # fmt: skip
    names = [o.name for o in session.get_outputs()]
    fresh, length, tokens, rows = list(ids), 0, [], []
    for _ in range(steps):
        feeds = {"input_ids": np.array([fresh]), "position_ids": np.arange(length, length + len(fresh))[None],
                 "attention_mask": np.ones((1, length + len(fresh)), np.int64)}  # fmt: skip
        length += len(fresh)
        feeds = {name: value for name, value in feeds.items() if name in inputs}
        found = dict(zip(names, session.run(names, {**feeds, **past, **adapter}), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        rows.append(found["logits"][0, -1])
        fresh = [int(rows[-1].argmax())]
        tokens += fresh
    return tokens, np.stack(rows)


def in_node(runtime: str, modules: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """What a script of ours printed. Raises RuntimeError with the error that node named."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        before = [runtime] if SCRIPTS[runtime] == "onnx_javascript.mjs" else []
        command = ["node", str(Path(__file__).with_name(SCRIPTS[runtime])), *before, str(modules.resolve()), file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if re.match(r"\w*Error", line.strip())]
        raise RuntimeError((errors or [done.stderr[-500:]])[0].strip()[:300])
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def by_names(
    runtime: str, modules: Path, model: Path, ids: Sequence[int], steps: int, adapter: Arrays
) -> tuple[str, list[int], Floats]:
    """The version of a runtime that is fed by names, its tokens, and the last logits of every step [steps, V]."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {}
        for i, (part, value) in enumerate(adapter.items()):
            (folder / f"{i}").write_bytes(np.ascontiguousarray(value).tobytes())
            parts[part] = {"dims": value.shape, "file": str(folder / f"{i}")}
        job = {"model": str(model.resolve()), "ids": list(ids), "steps": steps, "out": str(folder / "out"),
               "adapter": parts}  # fmt: skip
        said = in_node(runtime, modules, job)
        return said["version"], said["tokens"], np.fromfile(folder / "out", np.float32).reshape(steps, -1)


def alike(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(theirs))


def beside(tokens: Sequence[int], logits: Floats, theirs: Sequence[int], found: Floats) -> dict[str, Any]:
    """How many greedy tokens are Python's before the first that is not, of how many, and the largest difference of a
    logit up to there, as a part of the largest logit."""
    same = alike(tokens, theirs)
    seen = min(same + 1, len(theirs))  # the step at which they part still had the same input
    worst = float(np.abs(found[:seen] - logits[:seen]).max() / np.abs(logits).max())
    return {"tokens_alike": same, "of": len(theirs), "largest_difference": worst}


def compare(model: Path, modules: Path, text: str, steps: int, adapter: Arrays) -> dict[str, Any]:
    """Per runtime: its version, how many greedy tokens are Python's before the first that is not, and for those fed by
    names the largest difference of a logit up to there, as a part of the largest logit."""
    ids = read_ids(model, text)
    tokens, logits = in_python(model, ids, steps, adapter)
    out: dict[str, Any] = {"python": {"version": version("onnxruntime"), "tokens": tokens}, "not_covered": []}

    def fed(runtime: str) -> dict[str, Any]:
        release, theirs, found = by_names(runtime, modules, model, ids, steps, adapter)
        return {"version": release} | beside(tokens, logits, theirs, found)

    def by_itself(runtime: str) -> dict[str, Any]:
        job = {"folder": str(model.resolve().parent), "file": model.name, "text": text, "steps": steps}
        said = in_node(runtime, modules, job)
        same, of = alike(tokens, said["tokens"]), len(said["tokens"])
        return {"version": said["version"], "ids_alike": said["ids"] == ids, "tokens_alike": same, "of": of}

    for runtime, script in SCRIPTS.items():
        own = script == "transformers_js.mjs"
        if why := (f"{runtime}: it has no place for an adapter" if own and adapter else missing(runtime, modules)):
            out["not_covered"].append(why)
            continue
        try:
            out[runtime] = by_itself(runtime) if own else fed(runtime)
        except RuntimeError as e:
            out[runtime] = {"failed": str(e)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", nargs="*", type=Path, help="ADAPTER.gguf BASE.gguf")
    parser.add_argument("--modules", type=Path, default=Path("node_modules"))
    parser.add_argument("--steps", type=at_least(1), default=24)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    refuse_missing(parser, args.model)
    adapter = adapter_arrays(*args.adapter) if args.adapter else {}
    result = compare(args.model, args.modules, TEXT, args.steps, adapter)
    result["model"] = args.model.name + (f" with {args.adapter[0].name}" if args.adapter else "")
    show(args, result)


if __name__ == "__main__":
    launch(main)
