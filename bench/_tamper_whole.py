"""A bundle of whole models to tamper with, and the ways that only such a one has, for ``bench.bundles``."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from bench._tamper import MANIFEST, Material, Way, cut, dump, flip, manifest, resign, write
from bench._tamper_zip import WAYS, zipped
from popi_edge.models import onnx_adapter_check
from popi_edge.models.bases import file_sha256
from popi_edge.models.gguf import Gguf
from popi_edge.prompts import CONTRACT

Random = random.Random
MODEL, GRAPH, WEIGHTS, ADAPTER = "model-F32.gguf", "model-fp32.onnx", "model-fp32.onnx.data", "infer-fp32.onnx_adapter"
TEXTS = {"README.md": "How to load it.\n", "LICENSE": "CC0\n", "tokenizer.json": "{}\n", "NOTICE-base": "Thanks.\n"}
FILES = (MODEL, GRAPH, WEIGHTS, ADAPTER, *TEXTS)


def entry(path: Path) -> dict[str, Any]:
    return {"file": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)}


def graph(folder: Path, seed: int) -> None:
    """A small ONNX model whose one weight is in a file beside it."""
    import numpy as np
    import onnx
    from onnx import external_data_helper as outside
    from onnx import helper as make
    from onnx import numpy_helper

    weight = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    x, y = (make.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 64]) for n in "xy")
    tensor = numpy_helper.from_array(weight, "w")
    one = make.make_graph([make.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    model = make.make_model(one, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    outside.convert_model_to_external_data(model, location=WEIGHTS, size_threshold=0)
    onnx.save(model, folder / GRAPH)


def bundle(folder: Path, seed: int) -> Path:
    """Write a bundle of a tiny whole model: GGUF and ONNX, adapters for both, texts. Needs torch, onnx and gguf."""
    import numpy as np
    import onnxruntime as ort

    from tests import tiny

    folder.mkdir()
    model = tiny.llama(folder / MODEL, seed=seed)
    graph(folder, seed)
    kept = ort.AdapterFormat()
    kept.set_parameters({"w.a": ort.OrtValue.ortvalue_from_numpy(np.full((2, 3), seed, np.float32))})
    kept.export_adapter(str(folder / ADAPTER))
    roles: dict[str, dict[str, Any]] = {}
    for i, role in enumerate(("infer", "generate")):
        tiny.adapter(folder / f"{role}.gguf", model.config, seed=seed + i, rank=2)
        roles[role] = entry(folder / f"{role}.gguf")
    roles["infer"]["onnx"] = [entry(folder / ADAPTER)]
    for name, text in TEXTS.items():
        (folder / name).write_text(text + str(seed))
    types = dict(Counter(t.type for t in Gguf(folder / MODEL).tensors.values()))
    models = [
        {**entry(folder / MODEL), "format": "gguf", "quantization": "F32", "tensor_types": types},
        {**entry(folder / GRAPH), "format": "onnx", "quantization": "fp32", "tensor_types": {"FLOAT": 1},
         "beside": [entry(folder / WEIGHTS)]},
    ]  # fmt: skip
    table = {
        "format": 2, "name": f"w{seed}", "version": "1.0", "prompt_contract": CONTRACT, "models": models,
        "default": MODEL, "roles": roles, "files": [entry(folder / name) for name in TEXTS],
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(table, indent=1) + "\n")
    return folder


def entries(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Every file's entry in a manifest's table."""
    found: list[dict[str, Any]] = list(table["models"]) + [b for m in table["models"] for b in m.get("beside", [])]
    found += [role for role in table["roles"].values() if role]
    found += [a for r in table["roles"].values() if r for a in r.get("onnx", [])]
    return [*found, *table["files"]]


def placed(m: Material, at: Path, name: str, data: bytes) -> None:
    """Other bytes in a file's place, rightly hashed in a manifest that is signed anew."""
    write(at / name, data)
    table = manifest(at)
    next(e for e in entries(table) if e["file"] == name).update(entry(at / name))
    resign(m, at, dump(table))


def flip_any(r: Random, m: Material, at: Path) -> None:
    flip(r, at / r.choice(FILES))


def cut_any(r: Random, m: Material, at: Path) -> None:
    cut(r, at / r.choice([MODEL, GRAPH, WEIGHTS, ADAPTER]))


def missing_any(r: Random, m: Material, at: Path) -> None:
    (at / r.choice(FILES)).unlink()


def linked_any(r: Random, m: Material, at: Path) -> None:
    name = r.choice(FILES)
    (at / name).unlink()
    (at / name).symlink_to(m.folder / name)


def other_file(r: Random, m: Material, at: Path) -> None:
    name = r.choice([name for name in FILES if name != GRAPH])  # both bundles have the same graph
    write(at / name, (m.other / name).read_bytes())


def swapped_weights(r: Random, m: Material, at: Path) -> None:
    """Another bundle's weights, which fit the graph."""
    write(at / WEIGHTS, (m.other / WEIGHTS).read_bytes())


def extra_code(r: Random, m: Material, at: Path) -> None:
    names = ["model.py", "pytorch_model.bin", "model.safetensors", "model.pkl", "config.json", "LICENSE-more", "x.data"]
    (at / r.choice(names)).write_bytes(b"x")


def edited_models(r: Random, m: Material, at: Path) -> None:
    """The manifest changed under the old signature."""
    table = manifest(at)
    change = r.choice([{"default": None}, {"models": table["models"][:1]}, {"files": []}, {"licences": {"base": "x"}}])
    write(at / MANIFEST, dump(table | change))


def own_name_in_models(r: Random, m: Material, at: Path) -> None:
    table = manifest(at)
    one = r.choice(entries(table))
    end = one["file"].partition(".")[2] or "md"
    names = [f"../x.{end}", f"/tmp/x.{end}", f"a/b.{end}", f"..\\x.{end}", f"C:x.{end}", f"x.{end}\0", f".x.{end}",
             f"x.{end}:s", f"-x.{end}", "manifest.json", "MANIFEST.JSON", f"con.{end}", "manifest.sig", "x.py", "x.pkl",
             "x.safetensors", "x.so", "", f"{'x' * 200}.{end}", f"m\u043edel.{end}"]  # fmt: skip
    one["file"] = r.choice(names)
    resign(m, at, dump(table))


def own_wrong_number(r: Random, m: Material, at: Path) -> None:
    table = manifest(at)
    one = r.choice(entries(table))
    wrong = {"size": [-1, one["size"] + 1, 2**70, True, "1", None], "sha256": ["", "0" * 64, one["sha256"].upper(), 3]}
    key = r.choice(list(wrong))
    one[key] = r.choice(wrong[key])
    resign(m, at, dump(table))


def own_other_form(r: Random, m: Material, at: Path) -> None:
    """Signed, but not a bundle of whole models as the format has it."""
    table = manifest(at)
    roles, files, (a, b) = table["roles"], table["files"], table["models"]
    changes: list[dict[str, Any]] = [
        {"models": []}, {"models": {}}, {"models": [a] * 2}, {"models": [a] * 40}, {"models": [b]},
        {"models": [a | {"format": "onnx"}, b]}, {"models": [a | {"format": "pickle"}, b]},
        {"models": [a | {"quantization": "../x"}, b]}, {"models": [a | {"tensor_types": {"F32": 1}}, b]},
        {"models": [a | {"tensor_types": {"F32": True}}, b]}, {"models": [a | {"tensor_types": []}, b]},
        {"models": [a | {"beside": b["beside"]}, b | {"beside": []}]}, {"models": [a, b | {"beside": {}}]},
        {"models": [a, b | {"beside": []}], "files": [*files, b["beside"][0]]},
        {"models": [a, b | {"beside": b["beside"] * 2}]}, {"default": None}, {"default": GRAPH},
        {"default": "infer.gguf"}, {"default": ["x"]}, {"format": 1}, {"format": 3}, {"files": {}},
        {"base": {"name": "smollm2-135m", "sha256": "0" * 64}}, {"files": files * 2}, {"files": files[1:]},
        {"roles": roles | {"judge": roles["infer"]}}, {"roles": roles | {"generate": a}},
        {"roles": roles | {"generate": roles["generate"] | {"onnx": {}}}},
    ]  # fmt: skip
    change = r.choice(changes)
    resign(m, at, dump(table | change))


def own_other_graph(r: Random, m: Material, at: Path) -> None:
    """An ONNX model that reads another place, is cut, or is something else, rightly hashed and signed."""
    data = (at / GRAPH).read_bytes()
    name = WEIGHTS.encode()
    wrong = [data[: r.randrange(1, len(data))], data + b"\xff", b"\x80\x04\x95\x0a", b"GGUF" + bytes(60), b"PK\x03\x04",
             data.replace(name, b"/etc/passwd".ljust(len(name), b"x")), data.replace(name, b"../del-fp32.onnx.data"),
             data.replace(name, MODEL.encode().ljust(len(name), b"x")),
             data.replace(name, name[:-4] + b"DATA")]  # fmt: skip
    placed(m, at, GRAPH, r.choice(wrong))


def own_other_model(r: Random, m: Material, at: Path) -> None:
    data, adapter = ((at / name).read_bytes() for name in (MODEL, "infer.gguf"))
    wrong = [data[: r.randrange(len(data) - 32)], adapter, b"PK\x03\x04" + data, data[::-1], b""]
    placed(m, at, MODEL, r.choice(wrong))


def own_other_onnx_adapter(r: Random, m: Material, at: Path) -> None:
    """Changed where our own reader can tell: parts of it are padding that nobody reads."""
    data = (at / ADAPTER).read_bytes()
    while True:
        how, changed = r.randrange(3), bytearray(data)
        if how == 0:
            changed = changed[: r.randrange(len(data) - 1)]
        else:
            at_ = r.randrange(len(data) - 4)
            changed[at_ : at_ + how] = r.randbytes(how)
        write(at / ADAPTER, bytes(changed))
        try:
            onnx_adapter_check.check(at / ADAPTER)
        except Exception:
            break
    placed(m, at, ADAPTER, bytes(changed))


def zip_missing_any(r: Random, m: Material, at: Path) -> Path:
    missing_any(r, m, at)
    return zipped(at)


def zip_extra_code(r: Random, m: Material, at: Path) -> Path:
    extra_code(r, m, at)
    return zipped(at)


SPECIAL: tuple[Way, ...] = (
    flip_any, cut_any, missing_any, linked_any, other_file, swapped_weights, extra_code, edited_models,
    own_name_in_models, own_wrong_number, own_other_form, own_other_graph, own_other_model, own_other_onnx_adapter,
    zip_missing_any, zip_extra_code,
)  # fmt: skip
WHOLE: dict[str, Way] = {
    **{name: way for name, way in WAYS.items() if name != "own_other_fields"},
    **{way.__name__: way for way in SPECIAL},
}
"""Every way to tamper with a bundle of whole models: those of the other form too, but for one that makes this form."""

if __name__ == "__main__":
    for number, target in enumerate(sys.argv[1:]):
        bundle(Path(target), number)
