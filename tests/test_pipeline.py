"""``popi export`` of whole models: from every kind of checkpoint to a verified bundle that others load without popi."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popi_edge import config
from popi_edge.models import bundle
from popi_edge.models.gguf import Gguf
from popi_edge.models.signing import new_key
from popi_export import stages
from tests import tiny_hf
from tests import tiny_training as small

Popi = Callable[..., tuple[int, str, str]]
IDS = [7, 80, 200, 13, 299, 45, 120, 270]


@pytest.fixture
def popi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Popi:
    """``popi export`` with its words, not verified unless it says so."""
    return lambda *words: small.popi(monkeypatch, capsys, "export", *words, "--home", tmp_path / "home")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama's folder with a licence, a notice and a model card."""
    path = tiny_hf.folder(tmp_path_factory.mktemp("hf") / "tiny-llama", "llama", hidden=64)
    (path / "LICENSE").write_text("Do as you like.\n")
    (path / "NOTICE.txt").write_text("Made by hand.\n")
    (path / "README.md").write_text("---\nlanguage: en\nlicense: cc0-1.0\n---\n# tiny\n")
    return path


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf.peft_adapter(tmp_path_factory.mktemp("peft") / "taste", folder)


def refused(done: tuple[int, str, str], *words: str) -> None:
    code, out, err = done
    last = err.splitlines()[-1]
    assert (code, out) == (1, "") and last.startswith("popi: ") and "Traceback" not in err, err
    for word in words:
        assert word in last, last


def listed(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def hidden(*modules: str) -> str:
    """A line of Python after which none of these can be imported."""
    return f"import sys; sys.modules.update(dict.fromkeys({list(modules)}))\n"


BARE = hidden("torch", "transformers", "peft", "accelerate", "optimum", "llama_cpp")


def without(home: Path, *words: str | Path) -> tuple[int, str, str]:
    """``popi export`` where neither torch nor llama.cpp is installed: exit code, stdout, stderr."""
    program = f"{BARE}from popi_edge.cli import main; main()"
    command = [sys.executable, "-c", program, "export", *map(str, words), "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_onnx_is_made_where_there_is_no_torch_and_what_needs_it_says_so_at_once(folder: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    wanted = ("--to", "gguf,onnx", "--quant", "F32,fp32")
    refused(without(home, folder, out, *wanted), "comparing needs torch", "--verify off")
    refused(without(home, folder, out, *wanted, "--onnx", "optimum", "--verify", "off"), "optimum", "not installed")
    (tmp_path / "run").mkdir()
    refused(without(home, tmp_path / "run", tmp_path / "other"), "torch not installed")
    code, _, err = without(home, folder, out, *wanted, "--verify", "off")
    assert code == 0, err
    assert {"model-F32.gguf", "model-fp32.onnx"} <= set(listed(out))
    code, _, err = without(home, out / "model-F32.gguf", tmp_path / "again", "--to", "onnx", "--quant", "fp32",
                           "--licence", "CC0-1.0", "--verify", "off")  # fmt: skip
    assert code == 0, err
    assert (out / "model-fp32.onnx.data").read_bytes() == (tmp_path / "again" / "model-fp32.onnx.data").read_bytes()


def test_a_folder_becomes_a_bundle_with_everything_that_belongs_to_it(
    folder: Path, popi: Popi, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said, _ = popi(folder, out, "--to", "gguf,onnx", "--quant", "F32,Q8_0,Q4_1,fp32,int8,int4", "--verify", "off",
                         "--version", "2.0", "--json")  # fmt: skip
    assert code == 0
    table = json.loads((out / "manifest.json").read_text("utf-8"))
    assert json.loads(said) == {"folder": str(out), **table}
    found = bundle.verified(out)
    assert [m.quantization for m in found.contents.models] == ["F32", "Q8_0", "Q4_1", "fp32", "int8", "int4"]
    assert (table["name"], table["version"], table["default"]) == ("tiny-llama", "2.0", "model-F32.gguf")
    assert table["licences"] == {"model": "cc0-1.0"} and (out / "LICENSE-model").read_text() == "Do as you like.\n"
    assert "Made by hand." in (out / "NOTICE").read_text() and table["made_from"]["source"] == "tiny-llama"
    assert {"README.md", "MODEL_CARD.md", "tokenizer.json", "config.json"} <= set(listed(out))
    assert str(tmp_path) not in "".join((out / n).read_text() for n in ("README.md", "MODEL_CARD.md", "manifest.json"))
    assert listed(tmp_path) == ["out"]
    text = (out / "MODEL_CARD.md").read_text()
    assert "popi export tiny-llama OUT --to gguf,onnx" in text and "| model-Q4_1.gguf | Q4_1 |" in text


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_architectures_run_on_both_engines(architecture: str, popi: Popi, tmp_path: Path) -> None:
    from popi_export.runners import TorchRunner

    tiny_hf.folder(tmp_path / "hf", architecture, vocabulary="qwen2")
    assert popi(tmp_path / "hf", tmp_path / "out", "--quant", "F32", "--verify", "off")[0] == 0
    opened = bundle.open_bundle(tmp_path / "out", config.Settings(tmp_path / "home"))
    assert opened.decoding.opening == bundle.ZERO_SHOT["opening"]
    want = TorchRunner.folder(tmp_path / "hf").logits(IDS)
    for engine in ("onnx", "llama_cpp"):
        e: Any = opened.engine(engine, threads=1)
        got = e._feed(e.lane(None), IDS, len(IDS))
        e.close()
        assert np.abs(want - got).max() < 1e-2 * np.abs(want).max(), engine


@pytest.mark.parametrize("how", ["keep", "merge"])
def test_an_adapter_is_kept_or_merged(how: str, folder: Path, adapter: Path, popi: Popi, tmp_path: Path) -> None:
    from popi_export.runners import OnnxRunner, TorchRunner

    out = tmp_path / "out"
    words = ("--base", folder, "--adapters", how, "--to", "gguf,onnx", "--quant", "F32,fp32", "--verify", "off")
    code, _, err = popi(adapter, out, *words)
    assert code == 0 and "the licence of the adapter is not known" in err
    opened = bundle.open_bundle(out, config.Settings(tmp_path / "home"))
    table: Any = opened.manifest
    assert table["licences"] == {"base": "cc0-1.0", "adapter": "not known"} and "decoding" not in table
    assert table["made_from"]["merged"] == ("adapter" if how == "merge" else None)
    want = TorchRunner.folder(folder, adapter).logits(IDS)
    plain = TorchRunner.folder(folder).logits(IDS)
    e: Any = opened.engine("onnx", threads=1)
    lane = e.lane("infer" if how == "keep" else None)
    got = e._feed(lane, IDS, len(IDS))
    e.close()
    kept = [out / a["file"] for a in (table["roles"]["infer"] or {}).get("onnx", [])]
    bare = OnnxRunner(out / "model-fp32.onnx", *kept)
    for logits in (got, bare.logits(IDS)):
        assert np.abs(want - logits).max() < 1e-4 * np.abs(want).max()  # the adapter too is in float32
    assert np.abs(want - plain).max() > 0.1 * np.abs(want).max()  # the adapter matters
    bare.close()
    assert (opened.adapter("infer") == "infer") == (how == "keep")


def test_a_gguf_that_is_quantized_already_is_copied_bit_for_bit(base: Path, popi: Popi, tmp_path: Path) -> None:
    source = shutil.copy(base, tmp_path / "base.gguf")
    code, _, err = popi(source, tmp_path / "out", "--verify", "off")
    assert code == 0 and "fell back" not in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    made = tmp_path / "out" / "model-Q4_1.gguf"
    assert made.read_bytes() == base.read_bytes() and made.stat().st_ino != source.stat().st_ino
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["licences"] == {"model": "apache-2.0"}
    text = (tmp_path / "out" / "LICENSE-model").read_text()
    assert text.split()[:2] == ["Apache", "License"] and "licence" not in err


# compared with the source -------------------------------------------------------------------------------------------
def test_what_was_written_is_compared_and_the_table_is_in_the_bundle(
    folder: Path, adapter: Path, popi: Popi, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--base", folder, "--to", "gguf,onnx", "--quant", "F32,fp32", "--verify", "quick")
    code, _, err = popi(adapter, out, *words)
    assert code == 0 and "comparing model-fp32.onnx with infer on onnxruntime" in err
    table = json.loads((out / "table.json").read_text())
    assert table["ok"] and table["reference"] == "torch in float32"
    seen = {(r["file"], r["engine"], r["adapter"]) for r in table["rows"]}
    engines = [("model-F32.gguf", "llama.cpp"), ("model-F32.gguf", "popi-onnx"), ("model-fp32.onnx", "onnxruntime")]
    assert seen == {(*e, role) for e in engines for role in (None, "infer")}
    assert all((r["tokenizer"]["strings"], r["tokenizer"]["differing"]) == (600, 0) for r in table["rows"])
    lines = (out / "table.md").read_text()
    assert "Every limit holds." in lines and lines.strip() in (out / "MODEL_CARD.md").read_text()
    assert (out / "plot.png").read_bytes()[:4] == b"\x89PNG"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["verified"] == {"how": "quick", "reference": "torch in float32", "table": "table.json"}


def test_a_limit_that_does_not_hold_leaves_no_bundle(folder: Path, popi: Popi, tmp_path: Path) -> None:
    out, strict = tmp_path / "out", tmp_path / "strict.toml"
    strict.write_text("[limits.kl]\nQ8_0 = 1e-9\n")
    words = (folder, out, "--quant", "Q8_0", "--verify", "quick")
    refused(popi(*words, "--limits", strict), "no bundle: model-Q8_0.gguf on llama.cpp: mean KL", "over 1e-09")
    work = stages.place_of(out)
    assert not out.exists() and "Broken limits:" in (work / "verify" / "table.md").read_text()
    code, _, err = popi(*words, "--limits", strict)  # nothing is measured again to say the same
    assert code == 1 and "verify: done before" in err and "comparing" not in err
    strict.write_text("[limits.kl]\nQ8_0 = 1\n[limits.agreement]\nQ8_0 = 0\n[limits.perplexity]\nQ8_0 = 9\n")
    code, _, err = popi(*words, "--limits", strict)  # nor to say something else by other limits
    assert "measured: done before" in err and "comparing" not in err
    assert code == 0 and "gguf-Q8_0: done before" in err and listed(tmp_path) == ["out", "strict.toml"]
    strict.write_text("[limits]\nspeed = 3\n")
    refused(popi(*words[:1], tmp_path / "more", *words[2:], "--limits", strict), "no key limits.speed")


def test_weights_that_are_not_the_source_s_are_found(
    folder: Path, popi: Popi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that swaps two layers: what it writes loads and runs, but is not the model."""
    from popi_export import pipeline

    real = pipeline.write_model

    def swapped(path: Path, source: Any, kind: str, *, merge: str | None = None) -> None:
        real(path, source, kind, merge=merge)
        data, tensors = bytearray(path.read_bytes()), Gguf(path).tensors
        a, b = (tensors[f"blk.{i}.ffn_up.weight"].data.tobytes() for i in (0, 1))
        at, other = data.index(a), data.index(b)
        data[at : at + len(a)], data[other : other + len(b)] = b, a
        path.write_bytes(data)

    monkeypatch.setattr(pipeline, "write_model", swapped)
    refused(popi(folder, tmp_path / "out", "--quant", "F32", "--verify", "quick"), "a limit does not hold")
    assert not (tmp_path / "out").exists()


# as a third party does -----------------------------------------------------------------------------------------------
WITHOUT = hidden("popi_edge", "popi_export", "popi_training", "torch")


def python(folder: Path, mark: str) -> str:
    """A block of the bundle's README."""
    text = (folder / "README.md").read_text("utf-8")
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```python\n(.*?)```", text, re.S)
    assert found, mark
    return found[1]


def follow(folder: Path, mark: str) -> str:
    """Run a block in the bundle's folder, where nothing of popi can be imported; what it printed."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", WITHOUT + python(folder, mark)], cwd=folder, env=kept,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_s_own_blocks_load_it_without_popi(
    folder: Path, adapter: Path, popi: Popi, tmp_path: Path
) -> None:
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    words = ("--to", "gguf,onnx", "--quant", "F32,fp32", "--verify", "off")
    assert popi(folder, plain, *words)[0] == 0
    assert popi(adapter, kept, "--base", folder, *words)[0] == 0
    said = {}
    for place in (plain, kept):
        (place / "plain_onnxruntime.py").write_text(python(place, "plain_onnxruntime.py"))
        both = follow(place, "llama.cpp"), follow(place, "onnxruntime")
        said[place] = ["".join(c for c in text if c.isascii()).strip() for text in both]  # less broken UTF-8
        assert all(said[place])
        short = min(map(len, said[place]))  # one stops after 48 tokens, the other after 64
        assert said[place][0][: short // 2] == said[place][1][: short // 2]
    assert said[plain] != said[kept]  # the adapter matters


# whole or not there --------------------------------------------------------------------------------------------------
def test_a_killed_export_goes_on_and_makes_the_same(folder: Path, popi: Popi, tmp_path: Path) -> None:
    words = [str(folder), str(tmp_path / "out"), "--to", "gguf,onnx", "--quant", "Q8_0,Q4_1,int4,int8"]
    words += ["--verify", "off"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen([sys.executable, "-m", "popi_edge", "export", *words], stderr=subprocess.PIPE, text=True,
                             env=environment)  # fmt: skip
    assert child.stderr is not None
    while (line := child.stderr.readline()) and "making int" not in line:
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()
    assert line and not (tmp_path / "out").exists() and stages.place_of(tmp_path / "out").is_dir()
    code, _, err = popi(*words)
    assert code == 0 and "gguf-Q8_0: done before" in err and "model-F32: done before" in err
    assert listed(tmp_path) == ["out"]
    words[1] = str(tmp_path / "again")
    assert popi(*words)[0] == 0
    first, second = tmp_path / "out", tmp_path / "again"
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_nothing_is_overwritten_and_only_a_bundle_replaced(folder: Path, popi: Popi, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (folder, out, "--quant", "F32", "--verify", "off")
    assert popi(*words)[0] == 0
    refused(popi(*words), "out is there already", "--force")
    assert popi(*words, "--version", "2", "--force")[0] == 0
    assert json.loads((out / "manifest.json").read_text())["version"] == "2"
    (out / "notes.txt").write_text("mine")
    refused(popi(*words, "--force"), "holds more than a bundle")
    assert (out / "notes.txt").read_text() == "mine" and listed(tmp_path) == ["out"]


def test_it_is_signed_when_a_key_is_given(folder: Path, popi: Popi, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    assert popi(folder, tmp_path / "out", "--quant", "F32", "--verify", "off", "--sign", tmp_path / "key")[0] == 0
    assert bundle.verified(tmp_path / "out", (key,)).signer == key
    (tmp_path / "key").chmod(0o644)
    refused(popi(folder, tmp_path / "more", "--sign", tmp_path / "key"), "others may read")
    assert listed(tmp_path) == ["key", "key.pub", "out"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--to", "mlx"], "'mlx': there are gguf, onnx"), (["--quant", "Q4_2"], "'Q4_2': for gguf there are F32"),
        (["--quant", "int4"], "'int4': for gguf there are"), (["--adapters", "merge"], "has no adapters to merge"),
        (["--name", "a b"], "the name must be letters"), (["--licence", "my own"], "the licence must be a name"),
        (["--base", "x"], "needs no base"), (["--calibration", "nowhere"], "cannot read the calibration text"),
        (["--onnx", "direct"], "add --to onnx"), (["--limits", "nowhere", "--verify", "quick"], "cannot read nowhere"),
    ],
)  # fmt: skip
def test_words_that_make_no_sense_are_refused(
    words: list[str], why: str, folder: Path, popi: Popi, tmp_path: Path
) -> None:
    """Before any work is done."""
    refused(popi(folder, tmp_path / "out", *words, *([] if "--verify" in words else ["--verify", "off"])), why)
    assert listed(tmp_path) == []


def test_what_is_no_checkpoint_is_said_in_words(folder: Path, popi: Popi, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    refused(popi(tmp_path / "nothing", tmp_path / "out"), "nothing: there is no such file or folder")
    refused(popi(tmp_path / "x.txt", tmp_path / "out"), "x.txt is none of what can be exported: a run (recipe.toml)")
    refused(popi(tmp_path / "bundle", tmp_path / "out"), "is a bundle; give what it was made from")


@pytest.mark.parametrize(("kind", "onnx"), [("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_1", "int4")])
def test_what_is_quantized_already_becomes_onnx_as_it_is(
    kind: str, onnx: str, folder: Path, popi: Popi, tmp_path: Path
) -> None:
    """By default, and without being rounded a second time: it computes what the GGUF computes, which torch says."""
    assert popi(folder, tmp_path / "a", "--quant", kind, "--verify", "off")[0] == 0
    file = tmp_path / "a" / f"model-{kind}.gguf"
    (tmp_path / "strict.toml").write_text(f"[limits.kl]\n{onnx} = 0.02\n")
    words = ("--to", "onnx", "--verify", "quick", "--limits", tmp_path / "strict.toml")
    code, _, err = popi(file, tmp_path / "b", *words)
    assert code == 0 and "rounds them once more" not in err, err
    assert f"model-{onnx}.onnx" in listed(tmp_path / "b") and not list((tmp_path / "b").glob("*.gguf"))
    other = "Q4_0" if kind == "Q8_0" else "Q8_0"
    code, _, err = popi(file, tmp_path / "c", "--quant", other, "--verify", "off")
    assert code == 0 and f"{other} is made from {kind} weights, which rounds them once more" in err
    assert "rounds them once more" in (tmp_path / "c" / "MODEL_CARD.md").read_text()


def test_an_importance_matrix_from_calibration_text_changes_the_weights(
    folder: Path, popi: Popi, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("Air scatters blue light most, so the sky is blue. " * 40)
    plain = (folder, tmp_path / "plain", "--quant", "Q4_0,Q8_0", "--verify", "off")
    weighed = (folder, tmp_path / "weighed", *plain[2:], "--calibration", tmp_path / "text.txt")
    assert popi(*plain)[0] == 0 and popi(*weighed)[0] == 0
    assert "importance matrix" in (tmp_path / "weighed" / "MODEL_CARD.md").read_text()
    a, b = (Gguf(tmp_path / name / "model-Q4_0.gguf").tensors for name in ("plain", "weighed"))
    assert any(not np.array_equal(a[n].data, b[n].data) for n in a)
