"""Every architecture, format and way with adapters, by the command that users run: what is lost, and the tokenizer.

    python -m bench.export_matrix OUT.json [--only ARCHITECTURE …] [--verify full|quick]

For each architecture a tiny model with random weights (hidden size 256, so that K-quants do not fall back) and a PEFT
adapter on it are made, then ``popi export ADAPTER OUT --base MODEL --to gguf,onnx`` runs for all kinds at once, with
the adapter merged and kept. The figures are those of the table in the bundle, against transformers and PEFT on the
folders; OUT.md beside OUT.json is the matrix. A cell of OUT.json that is there already is not made again.

Random weights have no preferred next token: what quantizing costs on them (KL) is far more than on a trained model, so
that only the float kinds (the defaults) and the tokenizer have limits here. It exits with 1 where a cell is missing or
over a limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from popi_edge.cli.common import launch
from popi_edge.files import whole_file
from tests import tiny_hf

GGUF = ("F32", "F16", "Q8_0", "Q4_K_M", "Q4_1")
ONNX = ("fp32", "int8", "int4")
WAYS = ("merge", "keep")
SEEDS = {"llama": 1, "qwen2": 2, "qwen3": 3, "gemma3": 4}
VOCABULARIES = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2", "gemma3": "gemma"}
LIMITS = """\
[limits]
task = 1.0

[limits.kl]
Q8_0 = 10
Q4_K_M = 10
Q4_1 = 10
int8 = 10
int4 = 10

[limits.agreement]
Q8_0 = 0

[limits.perplexity]
Q8_0 = 100
Q4_K_M = 100
Q4_1 = 100
int8 = 100
int4 = 100
"""


def cell(architecture: str, way: str, verify: str, folder: Path) -> dict[str, Any]:
    """Make the model and its adapter in ``folder`` and export them; the command's rows, or what it said instead."""
    words = VOCABULARIES[architecture]
    model = tiny_hf.folder(folder / "model", architecture, seed=SEEDS[architecture], vocabulary=words, hidden=256)
    adapter = tiny_hf.peft_adapter(folder / "adapter", model, seed=SEEDS[architecture])
    (folder / "limits.toml").write_text(LIMITS, "utf-8")
    command = [
        "export", str(adapter), str(folder / "out.popi"), "--base", str(model), "--to", "gguf,onnx", "--adapters", way,
        "--quant", ",".join((*GGUF, *ONNX)), "--verify", verify, "--limits", str(folder / "limits.toml"),
        "--licence", "CC0-1.0", "--name", f"tiny-{architecture}", "--home", str(folder / "home"),
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "popi_edge", *command], capture_output=True, text=True)
    seconds = round(time.perf_counter() - start, 1)
    if done.returncode:
        return {"exit": done.returncode, "said": done.stderr.strip().splitlines()[-1:], "seconds": seconds}
    check = [sys.executable, "-m", "popi_edge", "bundle", "verify", str(folder / "out.popi"), "--json"]
    verified = subprocess.run([*check, "--home", str(folder / "home")], capture_output=True, text=True)
    table = json.loads((folder / "out.popi" / "table.json").read_text("utf-8"))
    kept = ("file", "kind", "engine", "adapter", "size", "logits", "kl", "agreement", "tokenizer", "types", "fallback")
    rows = [{k: row[k] for k in kept} for row in table["rows"]]
    return {"exit": 0, "bundle_verify": verified.returncode, "seconds": seconds, "rows": rows}


def complete(found: dict[str, Any], way: str) -> list[str]:
    """What is missing or wrong in a cell: the command, a kind, a tokenizer."""
    if found["exit"] or found["bundle_verify"]:
        return [f"exit {found['exit']}, {' '.join(found.get('said', []))}"]
    wanted = {(kind, way == "keep") for kind in (*GGUF, *ONNX)} | {(kind, False) for kind in (*GGUF, *ONNX)}
    missing = wanted - {(row["kind"], row["adapter"] is not None) for row in found["rows"]}
    return [f"no row for {kind}{' with its adapter' if kept else ''}" for kind, kept in sorted(missing)] + [
        f"{row['file']} on {row['engine']}: {row['tokenizer']}"
        for row in found["rows"]
        if not row["tokenizer"] or row["tokenizer"]["differing"]
    ]


def markdown(cells: dict[str, Any]) -> str:
    """The matrix: mean KL to torch (greedy agreement) by kind, on the first engine that ran it."""
    lines = [
        "| | adapter | " + " | ".join((*GGUF, *ONNX)) + " | strings that differ |",
        "|---" * (len(GGUF) + len(ONNX) + 3) + "|",
    ]
    for name, found in cells.items():
        architecture, way = name.split(" ")
        if found["exit"]:
            lines.append(f"| {architecture} | {way} | exit {found['exit']} |")
            continue
        for adapted in (False, True):
            rows = [r for r in found["rows"] if (r["adapter"] is not None) == adapted]
            if not rows:
                continue
            first = {r["kind"]: r for r in reversed(rows)}
            shown = [f"{r['kl']:.2g} ({r['agreement']:.2f})" if (r := first.get(k)) else "–" for k in (*GGUF, *ONNX)]
            what = "merged" if way == "merge" else "kept, on" if adapted else "kept, off"
            strings = sum(r["tokenizer"]["strings"] for r in rows)
            differ = sum(r["tokenizer"]["differing"] for r in rows)
            lines.append(f"| {architecture} | {what} | {' | '.join(shown)} | {differ} of {strings:,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=tiny_hf.ARCHITECTURES, default=list(tiny_hf.ARCHITECTURES))
    parser.add_argument("--verify", choices=["full", "quick"], default="full")
    options = parser.parse_args()
    cells: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    wrong = []
    for architecture in options.only:
        for way in WAYS:
            name = f"{architecture} {way}"
            if name not in cells or cells[name]["exit"]:
                with tempfile.TemporaryDirectory(prefix="popi-matrix-") as folder:
                    cells[name] = cell(architecture, way, options.verify, Path(folder))
                for path, text in (
                    (options.out, json.dumps(cells, ensure_ascii=False, indent=1) + "\n"),
                    (options.out.with_suffix(".md"), markdown(cells)),
                ):
                    with whole_file(path) as file:
                        file.write(text.encode())
            wrong += [f"{name}: {line}" for line in complete(cells[name], way)]
    print(markdown(cells), *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    launch(main)
