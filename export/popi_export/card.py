"""The texts of a bundle of whole models: README.md says how to load it without popi, MODEL_CARD.md what it is.

A test runs the README's own blocks in a process without popi. Not covered: anything about the model that the export
itself does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

QUESTION = "How do I store bread?"
SNIPPET = "plain_onnxruntime.py"


def prompt(template: str, tokens: Mapping[str, str]) -> str:
    """The question under a chat template, as text. Raises ModelError where the template fails."""
    from popi_edge.models.template import render

    turns = [{"role": "user", "content": QUESTION}]
    return render(template, turns, add_generation_prompt=True, **tokens)


def readme(manifest: Mapping[str, Any], text: str) -> str:
    """README.md. ``text`` is the example's prompt as the model reads it, control tokens included."""
    gguf = [m for m in manifest["models"] if m["format"] == "gguf"]
    onnx = [m for m in manifest["models"] if m["format"] == "onnx"]
    roles = {role: entry for role, entry in manifest["roles"].items() if entry}
    parts = [f"# {manifest['name']} {manifest['version']}", about(manifest)]
    parts += ["What is in it and what it is worth: MODEL_CARD.md. Whose it is: NOTICE."]
    if gguf:
        parts += _llama_cpp(manifest["default"], roles)
    if onnx:
        parts += _onnx(onnx, roles, text, manifest["made_from"]["onnx"])
    parts += ["## With popi-edge", _popi(bool(gguf))]
    return "\n\n".join(parts) + "\n"


def about(manifest: Mapping[str, Any]) -> str:
    """What it is, in a sentence or two."""
    made = manifest["made_from"]
    kinds = ", ".join(dict.fromkeys(f"{m['format'].upper()} {m['quantization']}" for m in manifest["models"]))
    said = f"A {made['architecture']} model made from {made['source']}: {kinds}."
    if roles := [role for role, entry in manifest["roles"].items() if entry]:
        said += f" Its weights are the base's; beside them lie LoRA adapters for {' and '.join(roles)}."
    if merged := made.get("merged"):
        said += f" The adapter {merged} is merged into its weights."
    return said


def _llama_cpp(model: str, roles: Mapping[str, Any]) -> list[str]:
    option = f', lora_path="{next(iter(roles.values()))["file"]}"' if roles else ""
    lines = [
        "from llama_cpp import Llama",
        "",
        f'llm = Llama(model_path="{model}", n_ctx=1024, verbose=False{option})',
        f'messages = [{{"role": "user", "content": "{QUESTION}"}}]',
        "reply = llm.create_chat_completion(messages=messages, max_tokens=48, temperature=0.0)",
        'print(reply["choices"][0]["message"]["content"])',
    ]
    what = "`pip install llama-cpp-python`; the chat template is inside the file."
    if roles:
        what += " `lora_path` switches an adapter on; leave it out for the base."
    return ["## With llama.cpp", what, block(lines, "llama.cpp")]


def _onnx(models: Sequence[Mapping[str, Any]], roles: Mapping[str, Any], text: str, way: str) -> list[str]:
    operators = "ONNX's own" if way == "optimum" else "ONNX Runtime's (com.microsoft)"
    names = " or ".join(f"`{m['file']}`" for m in models)
    first = models[-1]["file"]
    kept = [a["file"] for entry in roles.values() for a in entry.get("onnx", ()) if a.get("model") == first]
    what = (
        f"`pip install onnxruntime tokenizers`. {names}, with what lies beside it under the same name. Inputs and "
        "outputs are named as optimum names them (text generation with past), "
        f"the operators are {operators}."
    )
    code = files("popi_export.snippets").joinpath(SNIPPET).read_text("utf-8").strip().splitlines()
    adapter = f', Path("{kept[0]}")' if kept else ""
    call = ["from pathlib import Path", "", f"from {SNIPPET.removesuffix('.py')} import main", "",
            f"main(Path({first!r}), {text!r}{adapter})"]  # fmt: skip
    said = ["## With ONNX Runtime", what, f"Save this as `{SNIPPET}`:", block(code, SNIPPET), "Then:"]
    return [*said, block(call, "onnxruntime")]


def block(lines: Sequence[str], mark: str) -> str:
    """A block of Python, with a mark by which a test finds it."""
    return "\n".join([f"<!-- {mark} -->", "```python", *lines, "```"])


def _popi(runs: bool) -> str:
    first = "`popi bundle verify FOLDER` says whether every file is as the manifest says, and who signed it."
    if not runs:
        return first
    return first + " `model = \"FOLDER\"` in popi's config.toml (or POPI_MODEL) uses it."


def model_card(manifest: Mapping[str, Any], table: str, notes: Sequence[str]) -> str:
    """MODEL_CARD.md. ``table`` is the verification's, in Markdown, or why there is none."""
    made = manifest["made_from"]
    rows = [
        f"| {m['file']} | {m['quantization']} | {sum(e['size'] for e in (m, *m.get('beside', ()))):,} "
        f"| {', '.join(f'{n} {kind}' for kind, n in m['tensor_types'].items())} |"
        for m in manifest["models"]
    ]
    parts = [
        f"# {manifest['name']} {manifest['version']}: what it is",
        about(manifest),
        "## Made from what, and how",
        f"Source: {made['source']} (SHA-256 of its files {made['sha256']}). Command:",
        f"```sh\n{made['command']}\n```",
        "## Files",
        "\n".join(["| File | Quantization | Bytes | Tensors |", "|---|---|---|---|", *rows]),
    ]
    if notes:
        parts += ["## Worth knowing", "\n".join(f"- {note}" for note in notes)]
    parts += ["## What it is worth", table.strip()]
    names = ", ".join(f"{part}: {name}" for part, name in manifest["licences"].items())
    parts += ["## Licences", f"{names}. Texts and notices: LICENSE-… and NOTICE."]
    return "\n\n".join(parts) + "\n"
