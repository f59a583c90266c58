"""The exported ONNX files in onnxruntime-node and onnxruntime-web: the same files, tokens and logits as in Python.

python -m bench.onnx_javascript MODEL.onnx [ADAPTER.gguf BASE.gguf] --modules NODE_MODULES. The packages are npm's; what
is not installed is listed under ``not_covered``. Not covered in any case: browsers, WebGPU, phones.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench.common import show
from popi_edge.engines.adapter import fused, hooks_of, read_adapter
from popi_edge.engines.onnx_graph import GROUPS
from popi_edge.engines.onnx_shape import Shape
from popi_edge.models.gguf import Gguf

SCRIPT = Path(__file__).with_name("onnx_javascript.mjs")
RUNTIMES = ("onnxruntime-node", "onnxruntime-web")
IDS = (1, 4093, 198, 2683, 359, 253, 4194, 7147, 47, 2, 198, 1, 520, 9531, 198)
Floats = NDArray[np.float32]
Arrays = Mapping[str, Floats]


def missing(runtime: str, modules: Path) -> str | None:
    """Why a runtime cannot be tried, or None."""
    if shutil.which("node") is None:
        return f"{runtime}: there is no node"
    return None if (modules / runtime).is_dir() else f"{runtime}: not in {modules.name or modules}"


def adapter_arrays(adapter: Path, base: Path) -> dict[str, Floats]:
    """A GGUF adapter's A and B by the names of the model's inputs."""
    gguf = Gguf(base)
    shape, read = Shape.of(gguf), read_adapter(adapter, gguf)
    out = {}
    for hook in hooks_of(read, adapter):
        layer, group = hook.split(".")
        sizes = [shape.of_tensor(f"blk.{layer}.{p}.weight") for p in GROUPS[group]]
        a, b = fused(read, shape, hook, sizes[0][1], sum(n for n, _ in sizes))
        out |= {f"lora.{hook}.a": a, f"lora.{hook}.b": b}
    return out


def in_python(model: Path, ids: Sequence[int], steps: int, adapter: Arrays) -> tuple[list[int], Floats]:
    """Greedy tokens, and the last logits of every step [steps, V]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    past = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
            for i in session.get_inputs() if i.name.startswith("past_key_values.")}  # fmt: skip
    names = [o.name for o in session.get_outputs()]
    fresh, length, tokens, rows = list(ids), 0, [], []
    for _ in range(steps):
        feeds = {"input_ids": np.array([fresh]), "position_ids": np.arange(length, length + len(fresh))[None],
                 "attention_mask": np.ones((1, length + len(fresh)), np.int64)}  # fmt: skip
        length += len(fresh)
        found = dict(zip(names, session.run(names, {**feeds, **past, **adapter}), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        rows.append(found["logits"][0, -1])
        fresh = [int(rows[-1].argmax())]
        tokens += fresh
    return tokens, np.stack(rows)


def in_node(
    runtime: str, modules: Path, model: Path, ids: Sequence[int], steps: int, adapter: Arrays
) -> tuple[str, list[int], Floats]:
    """The runtime's version, and the same two from it. Raises RuntimeError with what node said."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job: dict[str, Any] = {"model": str(model), "ids": list(ids), "steps": steps, "out": str(folder / "out")}
        for i, (part, value) in enumerate(adapter.items()):
            (folder / f"{i}").write_bytes(np.ascontiguousarray(value).tobytes())
            job.setdefault("adapter", {})[part] = {"dims": value.shape, "file": str(folder / f"{i}")}
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        command = ["node", str(SCRIPT), runtime, str(modules.resolve()), str(folder / "job.json")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if re.match(r"\w*Error", line.strip())]
            raise RuntimeError((errors or [done.stderr[-500:]])[0].strip()[:500])
        said = json.loads(done.stdout.splitlines()[-1])
        return said["version"], said["tokens"], np.fromfile(folder / "out", np.float32).reshape(steps, -1)


def compare(model: Path, modules: Path, ids: Sequence[int], steps: int, adapter: Arrays) -> dict[str, Any]:
    """Per runtime: its version, how many greedy tokens are Python's before the first that is not, and the largest
    difference of a logit over them, as a part of the largest logit."""
    tokens, logits = in_python(model, ids, steps, adapter)
    out: dict[str, Any] = {"python": {"version": ort.__version__, "tokens": tokens}, "not_covered": []}
    for runtime in RUNTIMES:
        if why := missing(runtime, modules):
            out["not_covered"].append(why)
            continue
        try:
            version, theirs, found = in_node(runtime, modules, model, ids, steps, adapter)
        except RuntimeError as e:
            out[runtime] = {"failed": str(e)}
            continue
        same = next((i for i, pair in enumerate(zip(tokens, theirs, strict=True)) if pair[0] != pair[1]), steps)
        seen = min(same + 1, steps)  # the step at which they part still had the same input
        worst = float(np.abs(found[:seen] - logits[:seen]).max() / np.abs(logits).max())
        out[runtime] = {"version": version, "tokens_alike": same, "of": steps, "largest_difference": worst}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", nargs="*", type=Path, help="ADAPTER.gguf BASE.gguf")
    parser.add_argument("--modules", type=Path, default=Path("node_modules"))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    adapter = adapter_arrays(*args.adapter) if args.adapter else {}
    result = compare(args.model, args.modules, IDS, args.steps, adapter)
    result["model"] = args.model.name + (f" with {args.adapter[0].name}" if args.adapter else "")
    show(args, result)


if __name__ == "__main__":
    main()
