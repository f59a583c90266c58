"""A trained checkpoint becomes a bundle that both engines run as torch does; the folder is whole or not there."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popi_edge import config
from popi_edge.engines.llama_cpp import LlamaCppEngine
from popi_edge.engines.onnx import OnnxEngine
from popi_edge.errors import ConfigError, ModelError, PopiError
from popi_edge.models import bases
from popi_edge.models.bundle import open_bundle, read_bundle
from popi_export import bundle
from popi_training import base, recipe, train
from tests import tiny as make
from tests import tiny_training as small

IDS = [7, 80, 200, 13, 13, 299, 45, 120, 270, 2, 260, 77] * 9
STEPS = 6
Popi = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with a tiny base that popi knows by name."""
    home = tmp_path_factory.mktemp("known")
    (home / "models").mkdir()
    file = home / "models" / "tiny.gguf"
    make.llama(file, seed=4)
    known = bases.Base(
        name="tiny", file=file.name, size=file.stat().st_size, sha256=bases.file_sha256(file), package="tiny",
        requirement="tiny==1.0", wheel_size=1, licence="CC0-1.0",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bases.BASES, "tiny", known)
        yield home


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps at a rate at which the adapter matters."""
    folder = tmp_path_factory.mktemp("exported")
    small.corpus(folder / "corpus")
    path = small.recipe(folder, "tiny", sha256=bases.BASES["tiny"].sha256, steps=STEPS, lr=0.03)
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    trainer = train.open_run(recipe.read(path), path, config.load(home))
    train.run(trainer, folder / "run", until=STEPS, minutes=None, tell=lambda *_: None)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)
    return folder / "run"


@pytest.fixture
def popi(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Popi:
    """``popi export`` with its words: exit code, stdout, stderr. Nothing is compared unless the words say so."""

    def call(*words: object) -> tuple[int, str, str]:
        quiet = [] if "--verify" in words or "--limits" in words else ["--verify", "off"]
        return small.popi(monkeypatch, capsys, "export", *words, *quiet, "--home", home)

    return call


def refused(done: tuple[int, str, str], *words: str) -> None:
    code, out, err = done
    assert (code, out) == (1, "") and err.startswith("popi: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("engine", ["onnx", "llama_cpp"])
def test_the_bundle_computes_in_both_engines_what_torch_computes(
    engine: str, home: Path, run: Path, popi: Popi, tmp_path: Path
) -> None:
    """Largest difference, relative to the largest logit, to the adapter rounded to float16: 3e-4; 5e-3 where llama.cpp
    rounds activations at float16 adapters."""
    assert popi(run, tmp_path / "out")[0] == 0
    found = open_bundle(tmp_path / "out", config.load(home))
    model = base.with_lora(base.dequantized(found.model), 4, 8.0, seed=0)
    state = train.read_checkpoint(run / train.CHECKPOINT)["adapters"]["infer"]
    with torch.no_grad(), model.disable_adapter():
        untouched = model(torch.tensor([IDS])).logits[0].numpy()
    base.load_lora(model, {n: a.astype(np.float16).astype(np.float32) for n, a in state.items()})
    with torch.no_grad():
        want = model(torch.tensor([IDS])).logits[0].numpy()
    kind: Any = OnnxEngine if engine == "onnx" else LlamaCppEngine
    exact = {} if engine == "onnx" else {"exact": True}
    e = kind(found.model, adapters=found.adapters, threads=2, **exact)
    got = e._feed(e.lane(found.adapter("infer")), IDS, len(IDS))
    bare = e._feed(e.lane(found.adapter("generate")), IDS, len(IDS))
    e.close()
    tolerance = 5e-3 if engine == "llama_cpp" else 3e-4
    assert np.abs(want - got).max() < tolerance * np.abs(want).max()
    assert np.abs(untouched - got).max() > 0.1  # the adapter matters
    assert np.abs(untouched - bare).max() < 2e-4 * np.abs(untouched).max()  # and is for the role infer alone


def test_a_run_is_a_source_of_its_base_and_its_adapters(home: Path, run: Path, popi: Popi, tmp_path: Path) -> None:
    """Its adapter is the bundle's file byte for byte; merged into the base, llama.cpp computes what torch computes."""
    from popi_export import source
    from popi_export.to_gguf import write_lora, write_model

    found = source.read(run, config.load(home))
    assert (found.kind, set(found.adapters)) == ("run", {"infer"})
    assert popi(run, tmp_path / "out")[0] == 0
    write_lora(tmp_path / "infer.gguf", found.adapters["infer"], found.config)
    assert (tmp_path / "infer.gguf").read_bytes() == (tmp_path / "out" / "infer.gguf").read_bytes()
    write_model(tmp_path / "merged.gguf", found, "F32", merge="infer")
    model = base.with_lora(base.dequantized(home / "models" / "tiny.gguf"), 4, 8.0, seed=0)
    base.load_lora(model, train.read_checkpoint(run / train.CHECKPOINT)["adapters"]["infer"])
    with torch.no_grad():
        want = model(torch.tensor([IDS])).logits[0].numpy()
    e = LlamaCppEngine(tmp_path / "merged.gguf", adapters={}, threads=1, exact=True)
    got = e._feed(e.lane(None), IDS, len(IDS))
    e.close()
    assert np.abs(want - got).max() < 2e-4 * np.abs(want).max()


def test_a_run_is_judged_by_the_limits_of_its_own_recipe(run: Path, popi: Popi, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    with (folder / "recipe.toml").open("a") as file:
        file.write("\n[limits.logits]\nF32 = 0\n")
    state = torch.load(folder / train.CHECKPOINT, weights_only=True)
    state["made_from"]["recipe"] = train.recipe_hash(recipe.read(folder / "recipe.toml"))
    torch.save(state, folder / train.CHECKPOINT)
    words = (folder, tmp_path / "out", "--adapters", "merge", "--quant", "F32", "--verify", "quick")
    code, _, err = popi(*words)
    assert code == 1 and "a limit does not hold" in err and " is over 0" in err and not (tmp_path / "out").exists()
    (tmp_path / "loose.toml").write_text("[limits.logits]\nF32 = 1\n")
    code, _, err = popi(*words, "--limits", tmp_path / "loose.toml")
    assert code == 0, err


def test_a_run_can_begin_with_an_exported_adapter(home: Path, run: Path, popi: Popi, tmp_path: Path) -> None:
    """The adapter file is the restart point: what it starts from is the checkpoint rounded to float16."""
    assert popi(run, tmp_path / "out")[0] == 0
    path = run.parent / "again.toml"  # beside the corpus that it names
    shutil.copytree(tmp_path / "out", run.parent / "first")
    start = 'alpha = 8.0\nstart = "first/infer.gguf"'
    text = (run / train.RECIPE).read_text().replace("alpha = 8.0", start)
    path.write_text(text)
    again = train.open_run(recipe.read(path), path, config.load(home))
    saved = train.read_checkpoint(run / train.CHECKPOINT)["adapters"]["infer"]
    for name, value in base.lora_state(again.model).items():
        assert np.array_equal(value, saved[name].astype(np.float16).astype(np.float32)), name
    assert again.made_from["start"] == bases.file_sha256(tmp_path / "out" / "infer.gguf")
    path.write_text(text.replace("alpha = 8.0", "alpha = 4.0"))
    with pytest.raises(ConfigError, match=r"lora\.start has rank 4 and alpha 8, the recipe 4 and 4"):
        train.open_run(recipe.read(path), path, config.load(home))
    path.write_text(text.replace("infer.gguf", "nowhere.gguf"))
    with pytest.raises(PopiError, match=r"nowhere\.gguf"):
        train.open_run(recipe.read(path), path, config.load(home))
    path.write_text(text)
    train.run(again, run.parent / "again", until=STEPS + 1, minutes=None, tell=lambda *_: None)
    assert popi(run.parent / "again", tmp_path / "more")[0] == 0
    manifest = json.loads((tmp_path / "more" / "manifest.json").read_text())
    assert manifest["licences"] == {"base": "CC0-1.0", "corpus": "not known", "adapter": "not known"}
    assert manifest["training"]["made_from"]["start"] == again.made_from["start"]


def test_the_manifest_says_what_the_bundle_is_and_what_made_it(
    home: Path, run: Path, popi: Popi, tmp_path: Path
) -> None:
    table = {"onestopenglish": {"contrast": 0.7, "low": 0.65, "high": 0.75}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    out = tmp_path / "deep" / "out"
    code, said, err = popi(
        run / train.CHECKPOINT, out, "--name", "my-taste", "--version", "1.2", "--evaluation", tmp_path / "table.json"
    )
    assert code == 0 and err == "" and "my-taste 1.2, infer.gguf" in said and "read back alike" in said
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    tiny = bases.BASES["tiny"]
    assert manifest["base"] == {
        "name": "tiny", "file": "tiny.gguf", "size": tiny.size, "sha256": tiny.sha256,
        "from": "the PyPI package tiny 1.0", "licence": "CC0-1.0",
    }  # fmt: skip
    digest = bases.file_sha256(out / "infer.gguf")
    role = {"file": "infer.gguf", "size": (out / "infer.gguf").stat().st_size, "sha256": digest}
    assert manifest["roles"] == {"infer": role, "generate": None} and "decoding" not in manifest
    made = manifest["training"]
    assert (made["recipe"], made["seed"], made["steps"], made["planned_steps"]) == ("small", 3, STEPS, STEPS)
    assert made["made_from"].items() <= json.loads((run / train.RUN).read_text()).items()
    assert set(made["made_from"]) == {"recipe", "corpus", "prompt contract", "base"}
    assert {"torch", "transformers", "peft"} <= set(made["exported_with"])
    assert manifest["evaluation"] == table and manifest["licences"]["base"] == "CC0-1.0"
    found = read_bundle(out, config.load(home))
    assert found.identity == f"my-taste-1.2-{digest[:8]}"
    assert (found.decoding.opening, found.decoding.sentences) == ("", None)
    assert listed(out) == ["infer.gguf", "manifest.json"] and listed(out.parent) == ["out"]


def test_a_draft_is_read_back_though_only_signed_bundles_are_trusted(
    run: Path, popi: Popi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POPI_TRUSTED_KEYS", f"ed25519:{'A' * 43}=")
    assert popi(run, tmp_path / "out")[0] == 0
    (tmp_path / "out" / "manifest.sig").write_text("signed since")
    assert popi(run, tmp_path / "out", "--force")[0] == 0 and "manifest.sig" not in listed(tmp_path / "out")


def test_sentences_for_its_summaries_go_with_it(home: Path, run: Path, popi: Popi, tmp_path: Path) -> None:
    path = tmp_path / "sentences.json"
    groups = [[["Be brief.", "Be short."], ["Use long replies."]], [["Likes jokes."]]]
    path.write_text(json.dumps(groups))
    assert popi(run, tmp_path / "out", "--candidates", path)[0] == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["decoding"] == {"candidates": groups}
    assert read_bundle(tmp_path / "out", config.load(home)).decoding.candidates == (
        (("Be brief.", "Be short."), ("Use long replies.",)), (("Likes jokes.",),)
    )  # fmt: skip
    for given, said in (
        ([[["Likes Xylophonia."]]], "'Likes Xylophonia.' cannot be written: word 'Xylophonia'"),
        ([["Be brief."]], "is not a list of dimensions"), ([[["Be brief."]], [["Be brief."]]], "1 of them twice"),
        ({"a": 1}, "is not a list of dimensions"), ([[[]]], "is not a list of dimensions"),
    ):  # fmt: skip
        path.write_text(json.dumps(given))
        refused(popi(run, tmp_path / "more", "--candidates", path), "sentences.json", said)
    path.write_text("[[")
    refused(popi(run, tmp_path / "more", "--candidates", path), "sentences.json: not JSON")
    refused(popi(run, tmp_path / "more", "--candidates", tmp_path / "none"), "cannot read the candidates")
    path.write_text(json.dumps(groups))
    refused(popi(run, tmp_path / "more", "--candidates", path, "--adapters", "merge"), "--candidates is for a run's")
    assert not (tmp_path / "more").exists()


def test_the_committed_manifest_has_the_same_form(run: Path, popi: Popi, tmp_path: Path) -> None:
    assert popi(run, tmp_path / "out")[0] == 0
    shipped = json.loads((Path(bundle.read_bundle.__code__.co_filename).parent / "popi-smol/manifest.json").read_text())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert set(shipped) == set(manifest) | {"evaluation", "decoding"}
    assert set(shipped["base"]) == set(manifest["base"]) and set(shipped["roles"]) == set(manifest["roles"])


def test_what_is_there_is_replaced_only_when_told_to_and_only_a_bundle(run: Path, popi: Popi, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert popi(run, out)[0] == 0
    refused(popi(run, out, "--version", "2"), "out is there already", "--force")
    assert json.loads((out / "manifest.json").read_text())["version"] == "0.1.0"
    assert popi(run, out, "--version", "2", "--force")[0] == 0
    assert json.loads((out / "manifest.json").read_text())["version"] == "2"
    assert listed(tmp_path) == ["out"] and listed(out) == ["infer.gguf", "manifest.json"]
    (out / "notes.txt").write_text("mine")
    refused(popi(run, out, "--force"), "holds more than a bundle")
    (tmp_path / "file").write_text("mine")
    refused(popi(run, tmp_path / "file", "--force"), "not a bundle's folder")
    refused(popi(run, run, "--force"), "holds more than a bundle")
    assert (out / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "why"),
    [("[1]", "an object, not list"), ("{", "not JSON"), ('{"a": NaN}', "NaN is no number"), (None, "cannot read")],
)
def test_an_evaluation_that_is_no_table_is_refused(
    text: str | None, why: str, run: Path, popi: Popi, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "table.json").write_text(text)
    refused(popi(run, tmp_path / "out", "--evaluation", tmp_path / "table.json"), why)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["--name", "--version"])
def test_a_name_that_is_none_is_refused(what: str, run: Path, popi: Popi, tmp_path: Path) -> None:
    for text in (" ", "a b", "../a", "a\nb", "-a", "a" * 65):
        refused(popi(run, tmp_path / "out", what, text), f"the {what[2:]} must be letters")
    assert listed(tmp_path) == []


def test_a_full_disk_leaves_what_was_there(run: Path, popi: Popi, tmp_path: Path) -> None:
    assert popi(run, tmp_path / "out")[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1_000, len(before["infer.gguf"]) // 2, len(before["infer.gguf"]) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            done = popi(run, tmp_path / "out", "--version", "2", "--force")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "cannot write" in done[2] or "is the disk full?" in done[2]
        refused(done, str(tmp_path / "out"))
        assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
        assert listed(tmp_path) == ["out"]


def test_adapters_are_compared_with_the_run_on_both_engines(run: Path, popi: Popi, tmp_path: Path) -> None:
    code, _, err = popi(run, tmp_path / "out", "--verify", "quick")
    assert code == 0 and "comparing tiny.gguf with infer on popi-llama_cpp" in err
    assert listed(tmp_path / "out") == ["infer.gguf", "manifest.json"]
    said = json.loads((tmp_path / "out" / "manifest.json").read_text())["verified"]
    assert (said["how"], said["reference"]) == ("quick", "torch in float32")
    assert [(r["role"], r["engine"]) for r in said["rows"]] == [("infer", "popi-onnx"), ("infer", "popi-llama_cpp")]
    assert all(0 <= r["kl"] < 1e-4 and r["agreement"] > 0.99 and r["positions"] == 128 for r in said["rows"])


@pytest.mark.parametrize("where", ["a file", "the recipe"])
def test_a_limit_that_does_not_hold_leaves_no_bundle(where: str, run: Path, popi: Popi, tmp_path: Path) -> None:
    limits, words = "[limits.kl]\nF16 = 0.0\n", ["--verify", "quick"]
    shutil.copytree(run, tmp_path / "run")
    if where == "a file":
        (tmp_path / "limits.toml").write_text(limits)
        words += ["--limits", str(tmp_path / "limits.toml")]
    else:
        recipe_ = tmp_path / "run" / train.RECIPE
        recipe_.write_text(recipe_.read_text() + limits)
        state = torch.load(run / train.CHECKPOINT, weights_only=True)
        state["made_from"]["recipe"] = train.recipe_hash(recipe.read(recipe_))
        torch.save(state, tmp_path / "run" / train.CHECKPOINT)
    code, out, err = popi(tmp_path / "run", tmp_path / "out", *words)
    assert (code, out) == (1, "") and not (tmp_path / "out").exists()
    assert "popi: a limit does not hold, so there is no bundle: tiny.gguf with infer on popi-onnx: mean KL" in err
    assert "(and 1 more)" in err.splitlines()[-1]


def test_limits_of_nothing_are_refused(run: Path, popi: Popi, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("[limits]\n")
    words = ("--verify", "off", "--limits", tmp_path / "limits.toml")
    refused(popi(run, tmp_path / "out", *words), "--limits without verifying")


def test_an_adapter_that_computes_something_else_is_found(
    run: Path, popi: Popi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that leaves out alpha / rank: what it writes loads and runs, but is not the run."""
    real = bundle.write_adapter
    monkeypatch.setattr(bundle, "write_adapter", lambda *a, alpha, **k: real(*a, alpha=4 * alpha, **k))
    code, _, err = popi(run, tmp_path / "out", "--verify", "quick")
    assert code == 1 and "a limit does not hold" in err.splitlines()[-1] and listed(tmp_path) == []


@pytest.mark.parametrize("how", ["damaged", "missing", "another recipe", "a base of no name", "another base"])
def test_a_checkpoint_that_cannot_become_a_bundle_is_refused(how: str, run: Path, popi: Popi, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    state = torch.load(run / train.CHECKPOINT, weights_only=True)
    text = (run / train.RECIPE).read_text()
    words = {"damaged": "damaged", "missing": "cannot read", "another recipe": "is not the recipe that"}
    if how == "another recipe":
        text = text.replace("alpha = 8.0", "alpha = 16.0")
    elif how == "a base of no name":
        text = text.replace('name = "tiny"', 'name = "./my.gguf"')
        words[how] = "devices know only smollm2-135m"
    elif how == "another base":
        state["made_from"]["base"] = "0" * 64
        words[how] = "another file than tiny's"
    (copy / train.RECIPE).write_text(text)
    if how != "another recipe":
        state["made_from"]["recipe"] = train.recipe_hash(recipe.read(copy / train.RECIPE))
    if how != "missing":
        torch.save(state, copy / train.CHECKPOINT)
    if how == "damaged":
        whole = bytearray((copy / train.CHECKPOINT).read_bytes())
        whole[len(whole) // 2] ^= 16
        (copy / train.CHECKPOINT).write_bytes(whole)
    refused(popi(copy, tmp_path / "out"), words[how])
    assert listed(tmp_path) == ["run"]


def test_a_run_of_models_that_no_bundle_can_hold_is_said_to_be_that(run: Path, popi: Popi, tmp_path: Path) -> None:
    micro = Path(recipe.__file__).parent.parent / "recipes" / "popi-micro.toml"
    whole = (run / train.RECIPE).read_text().replace("rank = 4", "rank = 4\nfull = true")
    whole = whole.replace('name = "small"', 'name = "small"\nmethod = "joint"\nrole = "both"')
    for text, what in ((micro.read_text("utf-8"), "of the controlled world"), (whole, "of whole models (lora.full)")):
        copy = Path(shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True))
        (copy / train.RECIPE).write_text(text)
        state = torch.load(copy / train.CHECKPOINT, weights_only=True)
        state["made_from"]["recipe"] = train.recipe_hash(recipe.read(copy / train.RECIPE))
        state["adapters"] = {"infer": {"model.norm.weight": torch.ones(3)}}
        torch.save(state, copy / train.CHECKPOINT)
        refused(popi(copy, tmp_path / "out"), f"{copy} is a run {what}; of runs only adapters")
    assert listed(tmp_path) == ["run"]


def test_seconds_that_are_no_number_are_not_counted(run: Path, home: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    lines = train.read_metrics(copy / train.METRICS)
    assert checkpoint(copy, home).seconds == pytest.approx(sum(m["seconds"] for m in lines))
    for odd, line in zip(("x", None, [], 10**400, float("nan")), lines, strict=False):
        line["seconds"] = odd
    (copy / train.METRICS).write_text("".join(json.dumps(m) + "\n" for m in lines))
    assert checkpoint(copy, home).seconds == lines[5]["seconds"]


def checkpoint(run: Path, home: Path) -> bundle.Checkpoint:
    return bundle.read(run, config.load(home))


def test_numbers_that_float16_cannot_hold_leave_nothing_behind(run: Path, home: Path, tmp_path: Path) -> None:
    made = checkpoint(run, home)
    name = next(iter(made.layers["infer"]))
    made.layers["infer"][name][1][0, 0] = 1e6
    with pytest.raises(ModelError, match="values that float16 cannot hold"):
        bundle.export(made, tmp_path / "out", config.load(home), name="a", version="1")
    assert listed(tmp_path) == []


@pytest.mark.parametrize("module", ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"])
@pytest.mark.parametrize("part", [0, 1])
def test_an_adapter_that_differs_in_one_number_does_not_pass_for_the_checkpoint(
    module: str, part: int, run: Path, home: Path, popi: Popi, tmp_path: Path
) -> None:
    assert popi(run, tmp_path / "out")[0] == 0
    made = checkpoint(run, home)
    gguf = bundle.Gguf(made.file)
    shape = bundle.Shape.of(gguf)
    bundle.compare(made, "infer", tmp_path / "out" / "infer.gguf", gguf, shape)
    made.layers["infer"][f"model.layers.2.{module}"][part][1, 2] += 0.01
    with pytest.raises(ModelError, match=r"blk\.2\..* does not read back"):
        bundle.compare(made, "infer", tmp_path / "out" / "infer.gguf", gguf, shape)


def test_a_run_that_is_not_at_its_end_is_exported_with_a_word_about_it(
    run: Path, home: Path, popi: Popi, tmp_path: Path
) -> None:
    state = torch.load(run / train.CHECKPOINT, weights_only=True) | {"step": 4}
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run" / train.CHECKPOINT)
    (tmp_path / "run" / train.RECIPE).write_bytes((run / train.RECIPE).read_bytes())
    code, said, err = popi(tmp_path / "run", tmp_path / "out", "--json")
    assert code == 0 and err == f"the run is at step 4 of {STEPS}\n"
    assert json.loads(said)["training"]["steps"] == 4
