"""Bundles of whole models: what is in them runs in both engines, and nothing passes that was not listed and signed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from bench import _tamper as tamper
from bench import _tamper_whole as whole
from bench import bundles as bench
from bench._tamper_zip import zipped
from popi_edge import config
from popi_edge.errors import ModelError
from popi_edge.models import bundle, hashed, manifest, onnx_adapter_check, precheck
from popi_edge.models.bases import file_sha256
from tests import tiny_training as small

Popi = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[tamper.Material, str]:
    """Two signed bundles of whole models, the keys, and the trusted public key."""
    folder = tmp_path_factory.mktemp("whole")
    return bench.material(folder, *(whole.bundle(folder / f"w{seed}", seed) for seed in (1, 5)))


@pytest.fixture
def strict(made: tuple[tamper.Material, str], tmp_path: Path) -> config.Settings:
    return config.Settings(tmp_path / "home", trusted_keys=(made[1],))


@pytest.fixture
def work(made: tuple[tamper.Material, str], tmp_path: Path) -> Path:
    shutil.copytree(made[0].folder, tmp_path / "x.popi")
    return tmp_path / "x.popi"


@pytest.fixture
def popi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Popi:
    return lambda *words: small.popi(monkeypatch, capsys, "bundle", *words, "--home", tmp_path / "home")


def test_tampered_bundles_of_whole_models_are_refused(
    made: tuple[tamper.Material, str], strict: config.Settings, tmp_path: Path
) -> None:
    rows = bench.run(2 * len(whole.WHOLE), 3, made[0], tmp_path, strict, table=whole.WHOLE)
    assert {r["way"] for r in rows} == set(whole.WHOLE)
    assert [r for r in rows if not r["refused"]] == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_any_bit_of_any_file_is_missed(
    made: tuple[tamper.Material, str], strict: config.Settings, tmp_path: Path, data: some.DataObject
) -> None:
    at = tmp_path / "bit.popi"
    tamper.clear(at)
    tamper.copy(made[0].folder, at)
    path = at / data.draw(some.sampled_from(sorted(p.name for p in at.iterdir())))
    changed = bytearray(path.read_bytes())
    changed[data.draw(some.integers(0, len(changed) - 1))] ^= 1 << data.draw(some.integers(0, 7))
    tamper.write(path, bytes(changed))
    with pytest.raises(ModelError) as e:
        bundle.open_bundle(at, strict)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_models_are_hashed_once_and_again_when_somebody_has_written_to_them(
    form: str, work: Path, strict: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashed, "LARGE", 1 << 16)
    monkeypatch.setattr(hashed, "SETTLED", -1.0)
    strict.home.mkdir(mode=0o700)
    times: list[str] = []
    monkeypatch.setattr(bundle, "file_sha256", lambda p: times.append(p.name) or file_sha256(p))  # type: ignore[func-returns-value]
    path = zipped(work) if form == "zip" else work
    model = bundle.open_bundle(path, strict).model
    times.clear()
    assert bundle.open_bundle(path, strict).model == model
    if form == "zip":  # what was unpacked was looked at while it was unpacked; the files are looked at once more
        times.clear()
        bundle.open_bundle(path, strict)
    assert model.name not in times and path.name not in times and "infer.gguf" in times
    about = model.stat()
    with model.open("r+b") as file:
        file.seek(about.st_size - 40)
        byte = file.read(1)
        file.seek(about.st_size - 40)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(model, ns=(about.st_atime_ns, about.st_mtime_ns))
    times.clear()
    if form == "folder":
        with pytest.raises(ModelError, match="its SHA-256 is not the manifest's"):
            bundle.open_bundle(path, strict)
    else:  # unpacked anew
        assert file_sha256(bundle.open_bundle(path, strict).model) == file_sha256(work / model.name)
    assert model.name in times


@pytest.mark.parametrize("engine", ["onnx", "llama_cpp"])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_the_model_in_it_runs_in_both_engines(
    engine: str, form: str, work: Path, strict: config.Settings
) -> None:
    found = bundle.open_bundle(work if form == "folder" else zipped(work), strict)
    assert found.model.name == whole.MODEL and found.identity.startswith("w1-1.0-")
    assert set(found.adapters) == {"infer", "generate"}
    e: Any = found.engine(engine, threads=1)
    ids = [7, 80, 200, 13, 299, 45]
    own = e._feed(e.lane("infer"), ids, len(ids))
    bare = e._feed(e.lane(None), ids, len(ids))
    e.close()
    assert np.isfinite(own).all() and np.abs(own - bare).max() > 0.1


def test_a_bundle_without_adapters_names_itself_by_its_model(work: Path, strict: config.Settings) -> None:
    table = tamper.manifest(work)
    for name in ("infer.gguf", "generate.gguf", whole.ADAPTER):
        (work / name).unlink()
    (work / "manifest.sig").unlink()
    tamper.write(work / "manifest.json", tamper.dump(table | {"roles": {"infer": None, "generate": None}}))
    found = bundle.open_bundle(work, replace(strict, trusted_keys=()))
    assert found.identity == f"w1-1.0-{table['models'][0]['sha256'][:8]}" and found.adapter("infer") is None


def test_onnx_models_alone_are_verified_but_not_run(work: Path, strict: config.Settings, popi: Popi) -> None:
    table = tamper.manifest(work)
    (work / whole.MODEL).unlink()
    (work / "manifest.sig").unlink()
    tamper.write(work / "manifest.json", tamper.dump(table | {"models": table["models"][1:], "default": None}))
    plain = replace(strict, trusted_keys=())
    assert bundle.verified(work).contents.default is None
    with pytest.raises(ModelError, match="ONNX models for other programs alone"):
        bundle.open_bundle(work, plain)
    assert popi("verify", work)[0] == 0


def test_sign_and_verify_by_the_command_line(popi: Popi, made: tuple[tamper.Material, str], work: Path) -> None:
    (work / "manifest.sig").unlink()
    code, out, _ = popi("sign", work, "--key", made[0].folder.parent / "ours", "--json")
    assert code == 0 and json.loads(out)["signed_by"] == made[1]
    code, out, _ = popi("verify", zipped(work), "--key", made[1], "--json")
    found = json.loads(out)
    size = sum(p.stat().st_size for p in work.iterdir() if not p.name.startswith("manifest."))
    assert code == 0 and found["trusted"] and found["bytes"] == size
    assert [m["quantization"] for m in found["models"]] == ["F32", "fp32"]
    code, out, _ = popi("verify", work)
    assert code == 0 and f"w1 1.0, {len(list(work.iterdir())) - 2} files of" in out
    code, out, _ = popi("verify", work / whole.ADAPTER)
    assert code == 0 and "a well-formed ONNX Runtime adapter (1 parameters)" in out


def test_a_text_is_hashed_and_never_parsed(work: Path, strict: config.Settings) -> None:
    """Whatever is in tokenizer.json, a rightly hashed one opens: who loads it must read it with care."""
    bad = b"[" * 100_000
    tamper.write(work / "tokenizer.json", bad)
    table = tamper.manifest(work)
    next(e for e in table["files"] if e["file"] == "tokenizer.json").update(whole.entry(work / "tokenizer.json"))
    tamper.write(work / "manifest.json", tamper.dump(table))
    (work / "manifest.sig").unlink()
    assert bundle.open_bundle(work, replace(strict, trusted_keys=()))


NAMES = some.text(some.sampled_from("ab.-/\\:\0 é\n"), max_size=8)


@given(stem=NAMES, end=some.sampled_from([".md", ".json", ".py", ".MD", ".png", ".pkl", "", ".gguf", ".md "]))
def test_a_further_file_is_one_plain_text_or_picture(stem: str, end: str) -> None:
    """Against an independent reading of the rule."""
    name = stem + end
    safe = name.isascii() and name != "" and all(c.isalnum() or c in "._+-" for c in name) and name[0].isalnum()
    want = safe and Path(name).suffix in (".md", ".json", ".jinja", ".png", ".txt")
    table = {"file": name, "size": 1, "sha256": "0" * 64}
    try:
        manifest._entry(table, "other", "file", Path("m"))
        got = True
    except ModelError:
        got = False
    assert got == want


# ONNX Runtime's adapters -------------------------------------------------------------------------------------------
def test_the_adapter_check_reads_what_onnx_runtime_writes(tmp_path: Path) -> None:
    values = {f"layer.{i}.{part}": np.full((i, 3), i, np.float32) for i in (0, 1, 7) for part in "ab"}
    made = ort.AdapterFormat()
    made.set_parameters({k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in values.items()})
    made.export_adapter(str(tmp_path / "x"))
    assert set(onnx_adapter_check.check(tmp_path / "x")) == set(values)
    half = ort.OrtValue.ortvalue_from_numpy(np.ones((2, 2), np.float16))
    made.set_parameters({"half": half})
    made.export_adapter(str(tmp_path / "y"))
    assert onnx_adapter_check.check(tmp_path / "y") == ["half"]
    made.set_parameters({"whole": ort.OrtValue.ortvalue_from_numpy(np.ones((2, 2), np.int64))})
    made.export_adapter(str(tmp_path / "z"))
    with pytest.raises(ModelError, match="holds no floats"):
        onnx_adapter_check.check(tmp_path / "z")


def test_what_the_adapter_check_passes_onnx_runtime_loads(
    made: tuple[tamper.Material, str], tmp_path: Path
) -> None:
    """Any change of a byte: refused by the check, or a file that the library finds well-formed too."""
    data, path, r = (made[0].folder / whole.ADAPTER).read_bytes(), tmp_path / "x", random.Random(0)
    refused = 0
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= r.randrange(1, 256)
        path.write_bytes(changed)
        try:
            onnx_adapter_check.check(path)
        except ModelError as e:
            assert "\n" not in str(e)
            refused += 1
            continue
        ort.LoraAdapter().Load(str(path))
    assert refused > len(data) // 2
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            precheck.any_file(path)
