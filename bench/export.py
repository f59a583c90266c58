"""Time and peak memory of our exports against the usual tools, each on the same Hugging Face folder, in the same run.

    python -m bench.export [--json] [--runs N] [--layers N] [--peer gguf,onnx] [--llama-cpp DIR] [--python FILE]

GGUF: our ``write_model`` and ``quantize`` against llama.cpp's own convert_hf_to_gguf.py (inside llama-cpp-python's
source; ``--llama-cpp`` names its vendor/llama.cpp, else it is downloaded). ONNX: our direct way against optimum's
exporter. The peers run in ``--python``, else in a virtual environment that is made on top of this one. The folder is
the base with ``--layers`` of its layers, dequantized, float16. Memory is the largest process's peak. What both wrote is
compared: GGUF tensor by tensor, ONNX by its logits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import base, median, options, show
from popi_edge.cli.common import at_least, launch
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer

SDIST = "llama-cpp-python==0.3.36"
NEEDED = ("optimum-onnx==0.1.0", "optimum==2.1.0", "sentencepiece==0.2.1")
"""What the two peers import beside what is here (convert_hf_to_gguf.py: sentencepiece, whatever the model)."""
WRAPPER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
peak, cpu = used.ru_maxrss / 1024, used.ru_utime + used.ru_stime
found = {'rc': done.returncode, 'wall_s': wall, 'cpu_s': cpu, 'peak_rss_mb': peak}
print(json.dumps(found | {'tail': done.stdout[-600:]}))
"""
OURS_GGUF = """
import sys
from pathlib import Path
from popi_export import quantize, source, to_gguf
folder, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
first = out if kind == 'F16' else out.with_suffix('.f16')
to_gguf.write_model(first, source.read(folder), 'F16')
if kind != 'F16':
    quantize.quantize(first, out, kind)
"""
OURS_ONNX = """
import sys
from pathlib import Path
from popi_export import source, to_gguf, to_onnx
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir()
to_gguf.write_model(out / 'f32.gguf', source.read(folder), 'F32')
to_onnx.export(out / 'f32.gguf', out, 'fp32')
"""


def make_folder(path: Path, layers: int) -> None:
    """The base's first layers as a Hugging Face folder: safetensors in float16, its own tokenizer and template."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from popi_training.base import dequantized

    gguf = base()
    model = dequantized(gguf)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.to(torch.float16).save_pretrained(path)
    tokenizer = Tokenizer(Gguf(gguf))
    tokenizer._hf.encode_special_tokens = False
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._hf, eos_token="<|im_end|>", bos_token="<|im_start|>", unk_token="<|endoftext|>",
        chat_template=tokenizer.chat_template, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.save_pretrained(path, save_jinja_files=False)


def llama_cpp(given: Path | None, work: Path) -> Path:
    """The folder with convert_hf_to_gguf.py."""
    if given is not None:
        return given
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python",
                    "-d", str(work), SDIST], check=True)  # fmt: skip
    (archive,) = work.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(work, filter="data")
    return archive.with_suffix("").with_suffix("") / "vendor" / "llama.cpp"


def peers(given: Path | None, work: Path) -> Path:
    """A Python that the peers run in: this environment's packages and theirs on top."""
    if given is not None:
        return given
    folder = work / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    purelib = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], check=True,
                             capture_output=True, text=True).stdout.strip()  # fmt: skip
    (Path(purelib) / "below.pth").write_text("".join(f"{p}\n" for p in site.getsitepackages()))
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *NEEDED], check=True)
    return python


def timed(command: Sequence[str | Path], **environment: str) -> dict[str, Any]:
    """Run a command; seconds, processor seconds, peak memory of its largest process, and the end of what it said."""
    done = subprocess.run([sys.executable, "-c", WRAPPER, *map(str, command)], capture_output=True, text=True,
                          check=True, env=os.environ | environment)  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["rc"]:
        sys.exit(f"export: {Path(str(command[1])).name} failed: {found['tail']}")
    return found


def same_tensors(a: Path, b: Path) -> dict[str, Any]:
    """Whether two GGUF files hold the same tensors, and the largest difference of a value."""
    one, two = Gguf(a).tensors, Gguf(b).tensors
    if {n: t.shape for n, t in one.items()} != {n: t.shape for n, t in two.items()}:
        return {"same_names": False}
    bits = [n for n, t in one.items() if t.type != two[n].type or not np.array_equal(t.data, two[n].data)]
    worst = max((float(np.abs(one[n].dequantize() - two[n].dequantize()).max()) for n in bits), default=0.0)
    return {"same_names": True, "other_bits": len(bits), "largest_difference": worst}


def same_logits(a: Path, b: Path) -> dict[str, Any]:
    """The largest difference of a logit on 48 tokens."""
    from popi_export.runners import OnnxRunner

    out = []
    for path in (a, b):
        runner = OnnxRunner(path)
        out.append(runner.logits([(37 * i + 5) % 300 for i in range(48)]))
        runner.close()
    return {"largest_logit_difference": float(np.abs(out[0] - out[1]).max())}


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {k: round(median(list(rows), k), 2) for k in ("wall_s", "cpu_s", "peak_rss_mb")}


def gguf(folder: Path, work: Path, peer_: tuple[Path, Path], kind: str, runs: int) -> dict[str, Any]:
    """Ours against the converter (its Python and its folder), in turn."""
    rows: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    ours, peer = work / f"ours-{kind}.gguf", work / f"peer-{kind}.gguf"
    commands: dict[str, list[str | Path]] = {
        "ours": [sys.executable, "-c", OURS_GGUF, folder, ours, kind],
        "peer": [peer_[0], peer_[1] / "convert_hf_to_gguf.py", folder, "--outfile", peer, "--outtype", kind.lower()],
    }  # fmt: skip
    for i in range(runs):
        for name in ("ours", "peer")[:: 1 if i % 2 else -1]:
            for path in (ours, peer, ours.with_suffix(".f16")):
                if path.name.startswith(name):
                    path.unlink(missing_ok=True)
            rows[name].append(timed(commands[name], PYTHONDONTWRITEBYTECODE="1"))
    return {name: figures(r) for name, r in rows.items()} | {"written": same_tensors(ours, peer)}


def onnx(folder: Path, work: Path, python: Path, runs: int) -> dict[str, Any]:
    """The direct way against optimum's, in turn."""
    rows: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    ours, peer = work / "ours-onnx", work / "peer-onnx"
    commands: dict[str, list[str | Path]] = {
        "ours": [sys.executable, "-c", OURS_ONNX, folder, ours],
        "peer": [python, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", folder, "--task",
                 "text-generation-with-past", "--no-post-process", peer],
    }  # fmt: skip
    for i in range(runs):
        for name, out in (("ours", ours), ("peer", peer))[:: 1 if i % 2 else -1]:
            shutil.rmtree(out, ignore_errors=True)
            rows[name].append(timed(commands[name], HF_HUB_OFFLINE="1"))
    return {name: figures(r) for name, r in rows.items()} | {
        "written": same_logits(ours / "model-fp32.onnx", peer / "model.onnx")
    }


def main() -> None:
    parser: argparse.ArgumentParser = options(__doc__ or "")
    parser.add_argument("--layers", type=at_least(1), default=30)
    parser.add_argument("--peer", default="gguf,onnx")
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--python", type=Path)
    args = parser.parse_args()
    if set(args.peer.split(",")) - {"gguf", "onnx"}:
        parser.error(f"--peer is {args.peer!r:.60}; it names gguf, onnx or both")
    if args.python is not None and shutil.which(args.python) is None:
        parser.error(f"--python: {args.python} is no program")
    with tempfile.TemporaryDirectory(prefix="popi-export-bench-") as name:
        work = Path(name)
        made = subprocess.run([sys.executable, "-c", "import sys; from pathlib import Path; from bench.export import "
                               "make_folder; make_folder(Path(sys.argv[1]), int(sys.argv[2]))", work / "hf",
                               str(args.layers)], capture_output=True, text=True)  # fmt: skip
        if made.returncode:
            sys.exit(f"export: {made.stderr[-300:]}")
        found: dict[str, dict[str, Any]] = {}
        python = peers(args.python, work)
        if "gguf" in args.peer:
            converter = llama_cpp(args.llama_cpp, work)
            for kind in ("F16", "Q8_0"):
                found[f"gguf_{kind}"] = gguf(work / "hf", work, (python, converter), kind, args.runs)
        if "onnx" in args.peer:
            found["onnx_fp32"] = onnx(work / "hf", work, python, args.runs)
    names = {"gguf": "llama.cpp's convert_hf_to_gguf.py", "onnx": "optimum's exporter"}
    ratio = {job: {k: round(f["peer"][k] / f["ours"][k], 2) for k in f["ours"]} for job, f in found.items()}
    show(args, {
        "layers": args.layers, "ours": {job: f["ours"] for job, f in found.items()},
        "peer": {"name": names} | {job: f["peer"] for job, f in found.items()},
        "ratio": ratio, "written": {job: f["written"] for job, f in found.items()},
    })  # fmt: skip


if __name__ == "__main__":
    launch(main)
