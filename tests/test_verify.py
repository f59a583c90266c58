"""A verdict follows from the figures: right files pass, and each thing that can be wrong breaks its own limit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popi_edge.errors import ConfigError, EngineError, ModelError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_export import fuzz, parity, tasks, to_onnx, verify_report
from popi_export.fuzz import Differences
from popi_export.measure import Settings, Speed, measure
from popi_export.quantize import quantize
from popi_export.runners import LlamaRunner, TorchRunner
from popi_export.verify import Candidate, Report, Row, judge, verify, windows
from popi_training import limits
from popi_training.limits import Limits
from tests import tiny as make
from tests import tiny_hf

TEXTS = windows([(7 * i + i * i) % 360 for i in range(300)], size=64, count=3)
LOOSE = Limits(kl={"Q8_0": 1.0, "F32": 1e-6, "fp32": 1e-6}, perplexity={}, agreement={})


@pytest.fixture(scope="module")
def made(tiny: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny llama as GGUF, in Q8_0, as ONNX with its adapter, and with other weights."""
    folder = tmp_path_factory.mktemp("verify")
    path, model = tiny
    make.adapter(folder / "infer.gguf", model.config, seed=3, half=False)
    onnx = to_onnx.export(path, folder, "fp32", adapters={"infer": folder / "infer.gguf"})
    quantize(path, folder / "model-Q8_0.gguf", "Q8_0")
    make.llama(folder / "other.gguf", seed=9)
    return {"gguf": path, "q8": folder / "model-Q8_0.gguf", "adapter": folder / "infer.gguf", "other":
            folder / "other.gguf", "onnx": onnx[0], "data": onnx[1], "onnx_adapter": onnx[2]}  # fmt: skip


def reference(made: dict[str, Path]) -> Any:
    return lambda role: TorchRunner.gguf(made["gguf"], made["adapter"] if role else None)


def test_right_files_pass_on_every_engine_merged_and_with_the_adapter_kept(
    made: dict[str, Path], tmp_path: Path
) -> None:
    gguf = Gguf(made["gguf"])
    candidates = [
        Candidate("F32", "llama.cpp", made["gguf"]),
        Candidate("F32", "llama.cpp", made["gguf"], "infer", made["adapter"]),
        Candidate("F32", "popi-onnx", made["gguf"]),
        Candidate("Q8_0", "llama.cpp", made["q8"]),
        Candidate("fp32", "onnxruntime", made["onnx"], beside=(made["data"],)),
        Candidate("fp32", "onnxruntime", made["onnx"], "infer", made["onnx_adapter"], (made["data"],)),
    ]
    told: list[str] = []
    report = verify(candidates, reference(made), TEXTS, limits=LOOSE, advance=told.append)
    assert report.ok and report.failures == () and report.reference == "torch in float32"
    assert [r.candidate for r in report.rows] == candidates
    assert told[0] == "reference" and "model-fp32.onnx with infer on onnxruntime" in told
    exact, q8 = report.rows[0], report.rows[3]
    assert exact.parity.logits < 1e-3 < q8.parity.logits and exact.parity.kl < 1e-8 < q8.parity.kl
    assert exact.parity.positions == sum(map(len, TEXTS))
    assert q8.types == {"Q8_0": 29, "F32": 9} and q8.fallback == ""
    assert report.rows[4].size == made["onnx"].stat().st_size + made["data"].stat().st_size
    tokens = verify(
        [candidates[0], candidates[2]], reference(made), TEXTS, limits=LOOSE, tokenizer=fuzz.of_runtime(gguf),
        special=fuzz.controls(gguf), strings=3_300,
    )  # fmt: skip
    assert tokens.ok and all(r.tokenizer == Differences(3_300, 0) for r in tokens.rows)
    assert json.loads(json.dumps(tokens.json()))["rows"][0]["tokenizer"]["strings"] == 3_300


def test_the_figures_are_those_of_the_two_models(made: dict[str, Path]) -> None:
    report = verify([Candidate("Q8_0", "llama.cpp", made["q8"])], reference(made), TEXTS, limits=LOOSE)
    torch, native = TorchRunner.gguf(made["gguf"]), LlamaRunner(made["q8"])
    a, b = (np.concatenate([r.logits(t) for t in TEXTS]) for r in (torch, native))
    native.close()
    found = report.rows[0].parity
    assert found.kl == pytest.approx(parity.mean_kl(a, b)) and found.logits == parity.logit_difference(a, b)


def test_other_weights_another_adapter_and_another_tokenizer_are_refused(
    made: dict[str, Path], tmp_path: Path
) -> None:
    wrong = Candidate("F32", "llama.cpp", made["other"])
    missing = Candidate("fp32", "onnxruntime", made["onnx"], "infer", None, (made["data"],))
    found = verify([wrong, missing], reference(made), TEXTS, limits=Limits())
    assert not found.ok
    for row in found.rows:
        assert any("largest logit difference" in line for line in row.failures)
        assert any("mean KL" in line and "is over 1e-06" in line for line in row.failures)
    names = ("other.gguf on llama.cpp: ", "model-fp32.onnx with infer on onnxruntime: ")
    assert all(line.startswith(names) for line in found.failures)
    tiny_hf.tokenizer("gpt-2").save(str(tmp_path / "tokenizer.json"))
    qwen = tiny_hf.tokenizer("qwen2")
    other = Candidate("fp32", "onnxruntime", made["onnx"], beside=(made["data"],),
                      tokenizer=tmp_path / "tokenizer.json")  # fmt: skip
    none = replace(other, tokenizer=None)
    encode = lambda text, special: qwen.encode(text, add_special_tokens=False).ids  # noqa: E731
    split = verify([other, none], reference(made), TEXTS, limits=LOOSE, tokenizer=encode, strings=300)
    assert "of 300 strings tokenize differently, at most 0 may; first " in split.rows[0].failures[0]
    assert split.rows[1].failures == (f"{none.name}: its tokenizer could not be compared (no tokenizer.json)",)


def test_another_vocabulary_and_nothing_to_verify_are_errors(made: dict[str, Path], tmp_path: Path) -> None:
    onnx = Candidate("fp32", "onnxruntime", made["onnx"], beside=(made["data"],))
    with pytest.raises(EngineError, match="364 logits where the reference has 480"):
        folder = tiny_hf.folder(tmp_path / "hf", "llama")
        verify([onnx], lambda role: TorchRunner.folder(folder), TEXTS)
    for candidates, texts in (([], TEXTS), ([onnx], []), ([onnx], [[1]])):
        with pytest.raises(ConfigError, match="nothing to verify"):
            verify(candidates, reference(made), texts)


def row(**changes: Any) -> Row:
    figures = {"logits": 0.1, "agreement": 0.95, "kl": 0.01, "perplexity": 10.1, "reference_perplexity": 10.0}
    shape = {k: changes.pop(k) for k in list(changes) if k in figures}
    candidate = Candidate("Q4_1", "llama.cpp", Path("model-Q4_1.gguf"))
    found = Row(candidate, parity.Parity(**(figures | shape), positions=100), 5_000_000, Differences(3_300, 0))
    return replace(found, **changes)


STRICT = Limits(0, 0.05, {"Q4_1": 0.1}, {"Q4_1": 0.01}, {"Q4_1": 0.95}, {"Q4_1": 1.01})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"logits": 0.11}, "largest logit difference 0.11 is over 0.1"),
        ({"kl": 0.011}, "mean KL 0.011 is over 0.01"),
        ({"kl": float("nan")}, "mean KL nan is over 0.01"),
        ({"agreement": 0.94}, "greedy agreement 0.9400 is under 0.95"),
        ({"perplexity": 10.2}, "perplexity relative to the reference's 1.02 is over 1.01"),
        ({"tokenizer": Differences(3_300, 1, "'x'")},
         "1 of 3,300 strings tokenize differently, at most 0 may; first 'x'"),
        ({"tokenizer": None}, "its tokenizer could not be compared (no tokenizer.json)"),
        ({"before": {"accuracy": 0.9}, "task": {"accuracy": 0.8}},
         "accuracy fell from 0.900 to 0.800, by more than 0.05"),
        ({"before": {"accuracy": 0.9}, "task": {}}, "accuracy fell from 0.900 to nan, by more than 0.05"),
    ],
)  # fmt: skip
def test_each_figure_at_its_limit_passes_and_beyond_it_is_one_line(changes: dict[str, Any], line: str) -> None:
    assert judge(row(before={"a": 0.5}, task={"a": 0.45}), STRICT, True) == []
    assert judge(row(**changes), STRICT, True) == [line]


def test_limits_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "x"\n[limits]\ntokenizer = 2\ntask = 0\n[limits.kl]\nQ4_1 = 0.5\n', "utf-8")
    found = limits.read(path)
    assert (found.tokenizer, found.task, found.kl["Q4_1"]) == (2, 0.0, 0.5)
    assert found.kl["F32"] == Limits().kl["F32"] and found.agreement == Limits().agreement
    path.write_text("", "utf-8")
    assert limits.read(path) == Limits()
    for text, why in (
        ("[limits]\ntokeniser = 1", "no key limits.tokeniser"), ("limits = 3", "must be a table"),
        ("[limits]\ntokenizer = -1", "whole number"), ("[limits]\ntokenizer = true", "whole number"),
        ("[limits]\nkl = 0.1", "table of kinds"), ("[limits.kl]\nQ9 = 1", "no kind limits.kl.Q9"),
        ("[limits.kl]\nQ4_1 = nan", "number of at least 0"), ("[limits.kl]\nQ4_1 = '1'", "number of at least 0"),
        ("[limits]\ntask = -0.1", "number of at least 0"), ("[limits", "not TOML"),
    ):  # fmt: skip
        path.write_text(text, "utf-8")
        with pytest.raises(ConfigError, match=why):
            limits.read(path)
    with pytest.raises(ConfigError, match="cannot read"):
        limits.read(tmp_path / "none.toml")


def test_the_table_the_json_and_the_plot_say_the_same(tmp_path: Path) -> None:
    rows = (row(), row(failures=("model-Q4_1.gguf on llama.cpp: mean KL 1 is over 0.1",), before={"accuracy": 0.9},
                       task={"accuracy": 0.8}, speed=Speed(0.5, 100, 12.34, 200, 25.6, 50, 60, 70),
                       fallback="Q4_1 fell back: 1 tensor"))  # fmt: skip
    report = Report("torch in float32", rows, STRICT)
    text = verify_report.markdown(report)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4 and len({line.count("|") for line in table}) == 1
    assert table[2].endswith("| – | – | – | – | – | – | yes |")
    assert table[3].endswith("| 0.90 → 0.80 | 0.50 | 100 | 12.3 | 200 / 25.6 | 60 | no |")
    assert "Q4_1 fell back: 1 tensor." in text and "- model-Q4_1.gguf on llama.cpp: mean KL 1 is over 0.1" in text
    assert "Every limit holds." in verify_report.markdown(Report("torch", rows[:1], STRICT))
    assert json.loads(json.dumps(report.json(), allow_nan=False))["ok"] is False
    assert verify_report.plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_speed_and_memory_are_measured_in_another_process(made: dict[str, Path]) -> None:
    how = Settings(tokens=2_000, decode=8)
    for engine, key in (("llama.cpp", "q8"), ("onnxruntime", "onnx"), ("popi-onnx", "q8")):
        found = measure(engine, made[key], None, vocabulary=360, context=128, how=how)
        assert min(found.prefill, found.decode, found.prefill_cpu, found.decode_cpu) > 0
        assert 10 < found.rss_mb <= found.peak_mb
    with pytest.raises(EngineError, match=r"could not be measured: .*no such"):
        measure("llama.cpp", made["gguf"].parent / "none.gguf", None, vocabulary=9, context=128, how=how)
    with pytest.raises(EngineError, match="did not end within"):
        measure("llama.cpp", made["gguf"], None, vocabulary=9, context=128, how=replace(how, seconds=0.01))


# tasks -----------------------------------------------------------------------------------------------------
class Knows:
    """A stand-in model that finds the replies in ``liked`` likely after a prompt in ``after``, and others less."""

    name = "knows"

    def __init__(self, size: int, likes: dict[tuple[int, ...], tuple[int, ...]]) -> None:
        self.size, self.likes = size, likes

    def forget(self) -> None:
        pass

    def tail(self, ids: Any, last: int) -> Any:
        return self.logits(ids)[-last:]

    def logits(self, ids: Any) -> Any:
        out = np.zeros((len(ids), self.size), np.float32)
        for prompt, reply in self.likes.items():
            if tuple(ids[: len(prompt)]) == prompt:
                for i, t in enumerate(reply[: len(ids) - len(prompt) + 1]):
                    if tuple(ids[len(prompt) : len(prompt) + i]) == reply[:i]:
                        out[len(prompt) - 1 + i, t] = 3.0
        return out


def test_task_figures_are_of_held_out_pairs_and_follow_who_follows_the_summary(base: Path) -> None:
    tokenizer = Tokenizer(Gguf(base))
    pairs = tasks.items(tokenizer, 6, 0, longest=400)
    assert pairs == tasks.items(tokenizer, 6, 0, longest=400) != tasks.items(tokenizer, 6, 1, longest=400)
    assert all(len(p.own) > len(p.bare) and p.a != p.b and p.own != p.other for p in pairs)
    size = len(tokenizer)
    follows = Knows(size, {p.own: p.a for p in pairs} | {p.other: p.b for p in pairs})
    one, none, other = (tasks.margins(model, pairs) for model in (  # type: ignore[arg-type]
        follows, Knows(size, {}), Knows(size, {p.own: p.b for p in pairs})))  # fmt: skip
    assert one.figures == {"accuracy": 1.0, "contrast": 1.0}
    assert none.figures == {"accuracy": 0.5, "contrast": 0.5}
    assert other.figures == {"accuracy": 0.0, "contrast": 0.0}
    assert one.prompts == tuple(p.prompt for p in pairs)
    assert one.against(one) == pytest.approx({"pairs": 6, "same_reply": 1, "same_order": 1, "difference": 0,
                                              "size": np.abs([one.own, one.other]).mean()})  # fmt: skip
    apart = other.against(one)
    assert apart["same_reply"] == apart["same_order"] == 0 and apart["difference"] > 1
    with pytest.raises(ConfigError, match="has 0 pairs of at most 5 tokens, not 6"):
        tasks.items(tokenizer, 6, 0, longest=5)
    with pytest.raises(ConfigError, match="not in this install"):
        tasks.items(tokenizer, 6, 0, longest=400, folder=base.parent)


def test_a_task_before_and_after_stands_in_the_row(made: dict[str, Path]) -> None:
    seen: list[str] = []

    def task(runner: Any) -> tasks.Margins:
        seen.append(runner.name)
        own = (9.0,) * 9 + (-9.0,) if runner.name == "torch" else (9.0,) * 7 + (-8.0,) * 3
        return tasks.Margins(own, (0.5,) * 10, tuple("ababababab"))

    report = verify([Candidate("Q8_0", "llama.cpp", made["q8"])], reference(made), TEXTS, limits=LOOSE, task=task)
    assert seen == ["torch", "llama.cpp"]
    fell = [f"model-Q8_0.gguf on llama.cpp: {what} fell from 0.900 to 0.700, by more than 0.125"
            for what in ("accuracy", "contrast")]  # fmt: skip
    assert report.failures == tuple(fell)
    pairs = report.rows[0].pairs
    assert (pairs["pairs"], pairs["same_reply"], pairs["same_order"]) == (10, 0.8, 0.8)
    assert pairs["difference"] == pytest.approx((17 + 17 + 1) / 20) and pairs["size"] == pytest.approx(9.5 / 2)
    assert pairs["accuracy_low"] < 0.7 < pairs["accuracy_high"]
    text = verify_report.markdown(report)
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert "| 10 | 0.800 | 0.800 | 1.8 of 4.8 nats |" in text and "0.90 → 0.70 (0.60–0.80)" in text


def test_a_model_of_broken_weights_is_no_figure(made: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(made["gguf"].read_bytes())
    data[-64:] = b"\xff" * 64
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises((EngineError, ModelError)):
        verify([Candidate("F32", "llama.cpp", tmp_path / "bad.gguf")], reference(made), TEXTS)
