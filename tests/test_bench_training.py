"""The bench of a training step: lengths are what was asked for, and both sides are held to them."""

from __future__ import annotations

import copy
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import _ours, _step, common
from bench import training as bench
from popi_edge.errors import ConfigError, EngineError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("torch_as_before")
N, S, G, R = 96, 6, 4, 8


@pytest.fixture(scope="module")
def job(tiny: tuple[Path, Any]) -> _step.Job:
    return _step.Job(str(tiny[0]), signals=N, summary=S, group=G, question=7, reply=R, rows=2, threads=1)


@pytest.fixture(scope="module")
def ours(job: _step.Job) -> dict[str, Any]:
    return _ours.ours(job)


def test_ids_written_as_text_are_read_back_and_the_text_around_them_is_text(tiny: tuple[Path, Any]) -> None:
    plain, pinned = Tokenizer(Gguf(tiny[0])), _step.Verbatim(Gguf(tiny[0]))
    ids = [0, 2, *range(len(plain)), 49_151]
    around = "Prefers short replies. "
    assert pinned.encode(around + _step.verbatim(ids) + around) == [*plain.encode(around), *ids, *plain.encode(around)]
    assert pinned.encode(around) == plain.encode(around) and pinned.encode(pinned.decode(ids)) == ids


def test_our_side_has_the_lengths_asked_for_and_moves_both_roles(job: _step.Job, ours: dict[str, Any]) -> None:
    context = ours["had"]["reward"][0][0]
    pair = [context, R, R]
    assert ours["had"] == {"prompt": [N] * G, "summary": [S] * G, "reward": [pair] * G, "theta": [pair] * G}
    assert min(ours["moved"].values()) > 0
    through = ours["tokens_through"]
    assert through["rollout"] == N + G * (S - 1)  # the last token of a summary is drawn, not read
    assert N < through["phi"] <= 2 * (N + G * (S - 1))
    parts = [ours[f"{part}_s"] for part in _step.PARTS]
    assert min(parts) > 0 and sum(parts) < ours["step_s"]
    assert bench.same_work([ours], [as_peer(ours)], job) == {"prompt": N, "summary": S, "context": context, "reply": R}


def as_peer(row: dict[str, Any]) -> dict[str, Any]:
    """What a peer would report that did the same without sharing the prompt."""
    return copy.deepcopy(row) | {"tokens_through": {"rollout": G * (N + S - 1)}}


@pytest.mark.parametrize("runs", ["0", "-1", "two", "1.5"])
def test_no_bench_has_a_median_of_nothing(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        common.options("").parse_args(["--runs", runs])
    said = capsys.readouterr().err
    assert refused.value.code == 2 and re.search("must be at least 1, not|invalid whole number value", said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row["had"]["summary"].__setitem__(1, S - 1), r"peer did other work: summary \[6, 5, 6, 6\]"),
        (lambda row: row["had"]["theta"].pop(), "peer did other work: theta"),
        (lambda row: row["tokens_through"].update(rollout=G * (N + S)), "peer: 408 tokens in the rollout, not 404"),
        (lambda row: row["moved"].update(theta=0.0), "peer: a role did not move"),
    ],
)
def test_sides_that_did_other_work_are_refused(job: _step.Job, ours: dict[str, Any], change: Any, said: str) -> None:
    other = as_peer(ours)
    change(other)
    with pytest.raises(EngineError, match=said):
        bench.same_work([ours], [as_peer(ours), other], job)


def test_packed_and_plain_are_one_computation_of_fewer_tokens(job: _step.Job) -> None:
    packed, plain = _ours.packed(job), _ours.plain(job)
    assert bench.agree(packed, plain) < 1e-5 and packed["gradient"] > 0 and len(packed["logprobs"]) == G
    assert plain["tokens_through"] == {"packing": G * (N + S)}
    assert packed["tokens_through"]["packing"] <= N + G * (S - 1)
    plain["logprobs"][2] *= 1.01
    with pytest.raises(EngineError, match="packed and plain differ by 9"):
        bench.agree(packed, plain)


def test_a_part_of_the_clock_leaves_out_what_is_inside_it() -> None:
    clock, began = _step.Clock(), time.perf_counter()
    with clock.part("phi"):
        time.sleep(0.02)
        with clock.part("reward"):
            inside = time.perf_counter()
            time.sleep(0.05)
            inside = time.perf_counter() - inside
    whole = time.perf_counter() - began
    assert clock.seconds["reward"] >= inside and 0.02 <= clock.seconds["phi"] <= whole - inside and clock.now == ""


def test_the_peak_is_that_of_the_step_alone(job: _step.Job) -> None:
    torch.ones(40_000_000).sum()  # 160 MB, gone before
    before = _step.memory(job)
    kept = torch.ones(20_000_000)
    found = _step.memory(job, before)
    assert kept.sum() > 0 and 70 < found["peak_mb"] - found["loaded_mb"] < 110


def test_wrong_numbers_are_one_line(
    tiny: tuple[Path, Any], job: _step.Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        ("--group 8 --rows 3", "--rows 3 must divide --group 8"), ("--summary 1", "at least 2"),
        ("--device cuda", "for --part step alone"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as left:
            bench.arguments(words.split())
        assert left.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(ConfigError, match="1088 tokens do not fit the model's context of 1024"):
        bench.job_of(bench.arguments([]), tiny[0])
    monkeypatch.setitem(sys.modules, "trl", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install trl==1\.16\.0 'datasets<5' -c constraints\.txt"):
        bench.step(job, 1)


def test_a_device_that_is_not_there_is_one_line_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "base", lambda: pytest.fail("a model was looked for"))
    monkeypatch.setattr(sys, "argv", ["training", "--part", "step", "--device", "cuda"])
    with pytest.raises(SystemExit, match=r"^Error: there is no device cuda here$"):
        bench.main()


def test_trl_does_the_same_step(job: _step.Job) -> None:
    found = bench.step(job, 1)
    context = found["lengths"]["context"]
    assert found["lengths"] == {"prompt": N, "summary": S, "context": context, "reply": R}
    bare = _step.Pinned(job)
    asked = [sum(map(len, _step.asked_ids(bare.tokenizer, "", t))) for t in bare.person.targets]
    each = 2 * (context + R)
    assert found["peer"]["tokens_through"] == {
        "rollout": G * (N + S - 1),
        "reward": G * each + 2 * (asked[0] - 2 * R) + 2 * R,  # the reference once, on the bare prompt
        "phi": 2 * G * (N + S),  # the start, and the update
        "theta": 2 * G * each,  # the reference, and the update
    }
    assert "TRL" in found["peer"]["name"] and set(found["ratio"]) == {
        "step_s", "peak_mb", *(f"{part}_s" for part in _step.PARTS)
    }  # fmt: skip
