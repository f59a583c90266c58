"""Hostile folders for ``bench.export_hostile``: Hugging Face models, PEFT adapters, runs. As in ``bench._hostile``."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench._hostile import Files, Way, patched, pickled, put, template

Random = random.Random


# a model's folder --------------------------------------------------------------------------------------------------
def _folder(source: Path, at: Path) -> Path:
    shutil.copytree(source, at / "hf")
    return at / "hf"


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _safetensors(header: Mapping[str, Any] | bytes, rest: bytes, length: int | None = None) -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + rest


def hf_weights(r: Random, m: Files, at: Path) -> Path:
    """safetensors: cut, absurd lengths, offsets over others or beyond the end, shapes, types, deep JSON."""
    folder = _folder(m.hf, at)
    path = folder / "model.safetensors"
    path.write_bytes(broken_safetensors(r, path.read_bytes()))
    return folder


def broken_safetensors(r: Random, data: bytes) -> bytes:
    header, rest = _header(data)
    names = [n for n in header if n != "__metadata__"]
    a, b = r.sample(names, 2)
    begin, end = header[a]["data_offsets"]
    how = r.randrange(12)
    entries: list[dict[str, Any]] = [
        {"data_offsets": header[b]["data_offsets"]}, {"data_offsets": [begin, len(rest) + 4]},
        {"data_offsets": [end, begin]}, {"data_offsets": [-1, end]}, {"data_offsets": [2**63, 2**64]},
        {"shape": [2**40, 2**40]}, {"shape": [-1]}, {"dtype": r.choice(["F128", "object", 3])},
        {"data_offsets": [begin + 4, end]},
    ]  # fmt: skip
    if how < len(entries):
        return _safetensors(header | {a: header[a] | entries[how]}, rest)
    text = json.dumps(header).encode()
    return [
        data[: r.randrange(len(data) - 1)],
        _safetensors(header, rest, r.choice([2**63, 2**64 - 1, len(data), 0])),
        _safetensors(r.choice([b"[" * 100_000, b'{"a":' * 50_000, text[:-1] + b"," + text[1:], b"\xff" + text]), rest),
    ][how - len(entries)]


def hf_not_finite(r: Random, m: Files, at: Path) -> Path:
    folder = _folder(m.hf, at)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    start = 8 + struct.unpack_from("<Q", data)[0]
    where = start + 4 * r.randrange((len(data) - start) // 4)
    path.write_bytes(patched(data, where, struct.pack("<f", r.choice([float("nan"), float("inf"), -float("inf")]))))
    return folder


def hf_pickle(r: Random, m: Files, at: Path) -> Path:
    """Weights as pickles: instead of safetensors, or by its name."""
    folder = _folder(m.hf, at)
    (folder / "model.safetensors").unlink()
    put(folder, r.choice(["pytorch_model.bin", "model.pt", "model.safetensors", "model.ckpt"]), pickled(r))
    return folder


def _json(folder: Path, name: str, change: Mapping[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")


def hf_config(r: Random, m: Files, at: Path) -> Path:
    """config.json: absurd or missing sizes, remote code, another kind of model, deep or doubled JSON."""
    folder = _folder(m.hf, at)
    changes: list[dict[str, Any]] = [
        {"hidden_size": 2**40}, {"hidden_size": -1}, {"hidden_size": 7}, {"num_hidden_layers": 2**31},
        {"num_hidden_layers": 99}, {"vocab_size": 2**33}, {"num_attention_heads": 0}, {"rms_norm_eps": 1e400},
        {"rms_norm_eps": "x"}, {"auto_map": {"AutoModel": "evil.Model"}}, {"model_type": "evil"}, {"model_type": None},
        {"rope_theta": -5}, {"max_position_embeddings": True}, {"quantization_config": {"quant_method": "gptq"}},
        {"head_dim": 3}, {"hidden_act": "evil"}, {"architectures": ["EvilModel"]}, {"evil_switch": True},
    ]  # fmt: skip
    if r.random() < 0.7:
        _json(folder, "config.json", r.choice(changes))
        return folder
    text = (folder / "config.json").read_bytes()
    bad = [b"[" * 100_000, b'{"a":' * 100_000, b"", b"\xff\xfe", text[:-3], b"[]", b"1" * 10_000,
           text.rstrip()[:-1] + b"," + text[1:], b"{" + b'"a": 1,' * 200_000 + text[1:], pickled(r)]  # fmt: skip
    (folder / "config.json").write_bytes(r.choice(bad))
    return folder


def hf_tokenizer(r: Random, m: Files, at: Path) -> Path:
    """tokenizer.json: ids with holes or absurd, merges of no tokens, unknown parts, deep or cut JSON."""
    folder = _folder(m.hf, at)
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text("utf-8"))
    vocab, n = value["model"]["vocab"], len(value["model"]["vocab"])
    first = next(iter(vocab))
    changes: list[Callable[[], Any]] = [
        lambda: vocab.update({first: 2**31}), lambda: vocab.update({"evil": 10 * n + 5_000}),
        lambda: vocab.update({first: -1}), lambda: vocab.update({first: "x"}),
        lambda: vocab.update({"evil": vocab[first]}),
        lambda: value["model"]["merges"].append(["evil", "token"]), lambda: value["model"].update(merges=3),
        lambda: value["model"].update(type="Unigram"), lambda: value["model"].update(dropout=0.5),
        lambda: value.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}),
        lambda: value.update(normalizer={"type": "Precompiled"}), lambda: value.update(model=[]),
        lambda: value["added_tokens"].append({"id": 2**40, "content": "x"}), lambda: value["added_tokens"].append(3),
        lambda: value.update(post_processor={"type": "BertProcessing"}),
    ]  # fmt: skip
    if r.random() < 0.75:
        r.choice(changes)()
        path.write_text(json.dumps(value), "utf-8")
        return folder
    text = path.read_bytes()
    cut = text[: r.randrange(len(text) - 2)]
    path.write_bytes(r.choice([b"[" * 100_000, b'{"a":' * 100_000, cut, b"", pickled(r)]))
    return folder


def hf_large(r: Random, m: Files, at: Path) -> Path:
    """A JSON file of up to 40 MB: of very many values, very deep, or one long text; each would take many times its size
    in memory, or long to read."""
    folder = _folder(m.hf, at)
    unit = r.choice([b"[],", b"{},", b'"ab",', b"1.5,", b'{"a":[', b"[", b" ", b"a", '"\U0001f600",'.encode()])
    size = r.choice([300_000, 900_000, 4_000_000, 40_000_000])
    head, tail = r.choice([(b'{"model":[', b"1]}"), (b'{"added_tokens":[', b"1]}"), (b'{"x":"', b'"}')])
    name = r.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json", "config.json"])
    (folder / name).write_bytes(head + unit * (size // len(unit)) + tail)
    return folder


def hf_template(r: Random, m: Files, at: Path) -> Path:
    folder = _folder(m.hf, at)
    _json(folder, "tokenizer_config.json", {"chat_template": r.choice([template(r), template(r), None, 3, "", ["x"]])})
    return folder


def hf_links(r: Random, m: Files, at: Path) -> Path:
    """A pipe, a folder, a link to nowhere or to a device in a file's place."""
    folder = _folder(m.hf, at)
    path = folder / r.choice(["config.json", "model.safetensors", "tokenizer.json"])
    path.unlink()
    ways: list[Callable[[], None]] = [path.mkdir, lambda: path.symlink_to("nowhere"),
            lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to(path)]  # fmt: skip
    if sys.platform != "win32":
        ways.insert(0, lambda: os.mkfifo(path))
    r.choice(ways)()
    return folder


# PEFT adapters and runs --------------------------------------------------------------------------------------------
def peft_config(r: Random, m: Files, at: Path) -> Path:
    folder = _folder(m.peft, at)
    changes: list[dict[str, Any]] = [
        {"r": 2**31}, {"r": 0}, {"r": 3}, {"lora_alpha": "x"}, {"lora_alpha": 1e400}, {"peft_type": "IA3"},
        {"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 9}}, {"modules_to_save": ["lm_head"]},
        {"r": -1}, {"fan_in_fan_out": True},
    ]  # fmt: skip
    if r.random() < 0.7:
        _json(folder, "adapter_config.json", r.choice(changes))
    else:
        bad = [b"[" * 100_000, b"", b"[]", pickled(r), b'{"a":' * 9_999]
        (folder / "adapter_config.json").write_bytes(r.choice(bad))
    return folder


def peft_weights(r: Random, m: Files, at: Path) -> Path:
    folder = _folder(m.peft, at)
    path = folder / "adapter_model.safetensors"
    if r.random() < 0.2:
        path.unlink()
        put(folder, "adapter_model.bin", pickled(r))
    else:
        path.write_bytes(broken_safetensors(r, path.read_bytes()))
    return folder


def run_pickle(r: Random, m: Files, at: Path) -> Path:
    """A run's checkpoint that would run something, or is cut or changed; or a bare pickle."""
    if r.random() < 0.2:
        return put(at, "x.pt", pickled(r))
    folder = _folder(m.run, at)
    path = folder / "checkpoint.pt"
    how = r.randrange(4)
    if how == 0:
        path.write_bytes(pickled(r))
    elif how == 1:
        path.write_bytes(path.read_bytes()[: r.randrange(path.stat().st_size - 1)])
    elif how == 2:
        with zipfile.ZipFile(path, "a") as more:
            more.writestr("checkpoint/code/evil.py", "import os")
    else:
        with zipfile.ZipFile(path, "w") as new:
            new.writestr("checkpoint/data.pkl", pickled(r))
            new.writestr("checkpoint/byteorder", "little")
    return folder


FOLDERS: tuple[Way, ...] = (
    hf_weights, hf_not_finite, hf_pickle, hf_config, hf_tokenizer, hf_large, hf_template, hf_links, peft_config,
    peft_weights, run_pickle,
)  # fmt: skip
