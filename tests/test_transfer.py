"""Summaries under another generator: the figures of popi eval under its own, a plain computation's under any other, and
by hand where half of what a summary says is lost in a paraphrase."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from popi_edge import config, prompts
from popi_edge.models.bases import BASES, Base, stored
from popi_edge.prompts import CONTRACT
from popi_training import transfer
from popi_training.cli import evaluate
from popi_training.evaluate import run
from popi_training.evaluate.conditions import draw_donors, signals_key
from popi_training.evaluate.data import HISTORY, Dataset, load
from popi_training.evaluate.journal import UNITS, Journal
from popi_training.paraphrase import changed, paraphrase
from tests import tiny as make
from tests.test_evaluate_run import COLD, WARM, Toy, quiet, row

Command = Callable[..., str]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tiny_base(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model as a base that popi knows and has pulled."""
    base = Base("tiny", "tiny.gguf", path.stat().st_size, digest(path), "none", "none", 0, "none")
    monkeypatch.setitem(BASES, "tiny", base)
    place = stored(base, config.load().models)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(path.read_bytes())


def tiny_bundle(folder: Path, model: Any, seed: int, roles: Sequence[str] = ("infer", "generate")) -> Path:
    """A bundle of random adapters on the tiny base."""
    folder.mkdir()
    entries = {}
    for k, role in enumerate(roles):
        path = folder / f"{role}.gguf"
        make.adapter(path, model.config, seed=10 * seed + k)
        entries[role] = {"file": path.name, "size": path.stat().st_size, "sha256": digest(path)}
    manifest = {
        "format": 1, "name": folder.stem, "version": "1", "prompt_contract": CONTRACT, "roles": entries,
        "base": {"name": "tiny", "sha256": BASES["tiny"].sha256}, "decoding": {"sentences": 2},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def command(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``python -m`` a module, in this process: what it prints; a refusal raises SystemExit."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        module.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(transfer, monkeypatch, capsys)


# on a real engine ---------------------------------------------------------------------------------------------
def plainly(data: Dataset, summaries: list[str], model: Path | str) -> dict[str, tuple[float, float, float]]:
    """Accuracy, contrast and tokens of each condition, reply by reply, without the evaluation's own scoring."""
    pair = run.open_pair(str(model), None, config.load())
    tokenizer, donors = pair.engine.tokenizer, draw_donors(data.rows, 0)

    def ids(k: int, text: str) -> list[int]:
        return prompts.generate_ids(tokenizer, data.rows[k].prompt, summary=text or None)

    def difference(k: int, text: str) -> float:
        one, other = data.rows[k].chosen, data.rows[k].rejected
        up, down = (
            pair.engine.score(ids(k, text), [prompts.reply_ids(tokenizer, reply)], adapter=pair.generate_adapter)[0]
            for reply in (one, other)
        )
        return up.total - down.total

    def fronts(k: int) -> dict[str, tuple[str, str]]:
        d, r = donors[k], data.rows[k]
        return {
            "none": ("", ""), "summary": (summaries[k], summaries[d.opposite]),
            "shuffled_summary": (summaries[d.shuffled], summaries[d.shuffled_too]),
            "oracle_summary": (r.oracle, r.opposite_oracle),
        }  # fmt: skip

    found: dict[str, list[tuple[float, float, float]]] = {}
    for k in range(len(data.rows)):
        bare = difference(k, "")
        for name, (own, other) in fronts(k).items():
            a, b = difference(k, own), difference(k, other)
            added = float(len(ids(k, own)) - len(ids(k, "")))
            found.setdefault(name, []).append(((np.sign(a - bare) + 1) / 2, (np.sign(a - b) + 1) / 2, added))
    pair.engine.close()
    return {name: tuple(np.mean(values, axis=0)) for name, values in found.items()}


def shown(result: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    return {n: (c["accuracy"], c["contrast"], c["tokens"]) for n, c in result["conditions"].items()}


def close(a: dict[str, tuple[float, float, float]], b: dict[str, tuple[float, float, float]]) -> bool:
    return a.keys() == b.keys() and all(v == pytest.approx(b[k]) for k, v in a.items())


@pytest.fixture
def bundles(tmp_path: Path, tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    path, model = tiny
    tiny_base(path, monkeypatch)
    monkeypatch.setattr(transfer, "DEFAULT", "tiny")
    monkeypatch.setenv("POPI_THREADS", "1")
    return {n: tiny_bundle(tmp_path / f"{n}.popi", model, k) for k, n in enumerate(("ours", "other"))}


def test_summaries_are_scored_under_any_generator_as_a_plain_computation_scores_them(
    tmp_path: Path, bundles: dict[str, Path], call: Command
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row(n, p, times=2 + n % 2) for n in range(3) for p in (WARM, COLD)]))
    data, arguments = load(rows, "alignx"), ["--data", rows, "--format", "alignx"]
    source, listing = tmp_path / "run", tmp_path / "listing.jsonl"
    words = ["--bundle", bundles["ours"], *arguments, "--out", source, "--summaries", listing, "--json"]
    done = CliRunner().invoke(evaluate, [*map(str, words)])
    assert done.exit_code == 0, done.output
    there = json.loads((source / "result.json").read_text())
    before = (source / UNITS).read_bytes()
    summaries = [json.loads(line)["text"] for line in listing.read_text().splitlines()]
    assert len(set(summaries)) > 2 and all(summaries)

    own = tmp_path / "own.json"
    printed = call(source, "--bundle", bundles["ours"], *arguments, "--out", own)
    found = json.loads(own.read_text())
    assert found["own"] and found["adapter"] and "ours 1, its generate adapter" in printed
    assert found["conditions"] == {n: there["conditions"][n] for n in transfer.CONDITIONS}
    assert found["gap_closed"] == {n: there["gap_closed"][n] for n in transfer.CONDITIONS if n != "none"}
    assert set(found["transferred"].values()) <= {None, 1.0}

    results = {}
    for name, reader, share in (("other", ["--bundle", bundles["other"]], 0.4), ("tiny", ["--base"], None)):
        out = tmp_path / f"{name}.json"
        call(source, *reader, *arguments, "--out", out, "--paraphrase", 3, *(["--share", share] if share else []))
        results[name] = found = json.loads(out.read_text())
        model = bundles.get(name, name)
        assert close(shown(found["unparaphrased"]), plainly(data, summaries, model))
        other = [paraphrase(text, 3, share) for text in summaries]
        assert close(shown(found), plainly(data, other, model))
        lost = np.mean([*map(changed, summaries, other)])
        assert found["paraphrase"]["changed"] == pytest.approx(lost) and found["paraphrase"]["share"] == share
        assert (found["own"], found["adapter"], found["pairs"]) == (False, name == "other", 6)
    assert shown(results["other"]) != shown(results["tiny"])
    assert (source / UNITS).read_bytes() == before  # the run itself is left as it is


# by hand --------------------------------------------------------------------------------------------------------
SAID = {
    ("summer", "winter"): ("They like summer.", "They like winter."),
    ("short", "long"): ("Prefers short answers.", "Prefers long answers."),
}
"""Replies that are preferred, and what is said of who prefers them: a paraphrase keeps the first two texts alone."""
ORACLE = ("Write like short summer.", "Write like long winter.")


def half_lost(folder: Path) -> tuple[Dataset, list[dict[str, Any]]]:
    """Rows for the toy, and a summary for each that holds the preferred word alone."""
    rows, summaries = [], []
    for n in range(6):
        words = [*SAID][n // 3]
        for side, text in enumerate(SAID[words]):
            kin = [{"prompt": f"Ask {n} {side} {k}", "chosen": "a", "rejected": "b"} for k in range(3)]
            chosen, rejected = words[side], words[1 - side]
            rows.append({"prompt": f"Say something {n}", "chosen": chosen, "rejected": rejected,
                         "ground_truth_persona": ORACLE[side], HISTORY: kin})  # fmt: skip
            summaries.append({"text": text, "tokens": 99, "status": "draft"})
    path = folder / "half.json"
    path.write_text(json.dumps(rows))
    return load(path, "alignx"), summaries


def of_toy(folder: Path, toy: Toy, journal: Journal, seed: int | None) -> dict[str, Any]:
    data, summaries = half_lost(folder)
    pair = run.Pair(toy, model="toy")  # type: ignore[arg-type]
    return transfer.transfer(data, summaries, pair, journal, reworded=seed, advance=quiet)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_a_paraphrase_takes_away_is_worked_out_by_hand(tmp_path: Path, seed: int) -> None:
    toy = Toy()
    found = of_toy(tmp_path, toy, Journal(), seed)
    plain = of_toy(tmp_path, Toy(), Journal(), None)
    assert list(plain["conditions"]) == list(transfer.CONDITIONS) and "paraphrase" not in plain
    assert found["unparaphrased"] == plain
    for name in ("summary", "oracle_summary"):
        assert plain["conditions"][name]["accuracy"] == plain["conditions"][name]["contrast"] == 1
    # Six of the twelve summaries no longer hold the word: on them m is 0, under the opposite's summary too.
    got = found["conditions"]["summary"]
    assert (got["accuracy"], got["contrast"]) == (0.75, 0.75)
    assert found["gap_closed"]["summary"] == {"accuracy": 0.5, "contrast": 0.5}
    how = found["paraphrase"]
    assert how["kept"] == {"accuracy": 0.5, "contrast": 0.5}
    assert how["changed"] == pytest.approx((6 * 0 + 6 * 1) / 12)
    for difference in how["difference"].values():
        assert difference["value"] == -0.25 and -0.5 <= difference["low"] < -0.25 < difference["high"] <= 0
    assert found["conditions"]["oracle_summary"] == plain["conditions"]["oracle_summary"]
    # Tokens are counted anew, by this generator's tokenizer.
    texts = [paraphrase(text, seed) for said in SAID.values() for text in said]
    assert found["summary_tokens"] == pytest.approx(np.mean([len(toy.tokenizer.encode(t)) for t in texts]))


def test_shares_of_a_gap_are_none_where_there_is_none() -> None:
    def result(none: float, summary: float, top: float) -> dict[str, Any]:
        conditions = {n: {"accuracy": v, "contrast": v}
                      for n, v in (("none", none), ("summary", summary), ("oracle_summary", top))}  # fmt: skip
        gap = None if top <= none else (summary - none) / (top - none)
        return {"conditions": conditions, "gap_closed": {"summary": {"accuracy": gap, "contrast": gap}}}

    here, there, flat = result(0.5, 0.62, 0.8), result(0.5, 0.75, 1.0), result(0.5, 0.5, 1.0)
    assert transfer.transferred(here, there) == {m: pytest.approx(0.4 / 0.5) for m in transfer.METRICS}
    assert transfer.kept(here, there) == {m: pytest.approx(0.12 / 0.25) for m in transfer.METRICS}
    nothing = dict.fromkeys(transfer.METRICS)
    assert transfer.transferred(here, flat) == transfer.transferred(here, {}) == transfer.kept(here, flat) == nothing


def test_a_run_that_was_cut_off_goes_on_and_paraphrases_only_add(tmp_path: Path) -> None:
    whole = Toy()
    expected = of_toy(tmp_path, whole, Journal(), 0)
    folder, what = tmp_path / "x.units", {"data": "these rows"}
    with pytest.raises(KeyboardInterrupt), Journal(folder, what) as journal:
        of_toy(tmp_path, Toy(fail_after=9), journal, None)
    rest = Toy()
    with Journal(folder, what) as journal:
        of_toy(tmp_path, rest, journal, None)
    assert rest.calls and set(rest.calls) == {"score"}
    more, again = Toy(), Toy()
    for toy in (more, again):
        with Journal(folder, what) as journal:
            assert of_toy(tmp_path, toy, journal, 0) == expected
    assert 9 + len(rest.calls) + len(more.calls) == len(whole.calls) and not again.calls


# refusals -------------------------------------------------------------------------------------------------------
@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run's folder as popi eval leaves it, of the twelve rows of ``half_lost``."""
    data, summaries = half_lost(tmp_path)
    folder = tmp_path / "source"
    with Journal(folder, {"format": "alignx", "data": data.sha256, "seed": 0, "bundle": "b", "engine": "toy"}) as made:
        for r, s in zip(data.rows, summaries, strict=True):
            made.add(f"summary:{signals_key(r.signals)}", s)
    (folder / "result.json").write_text(json.dumps({"pairs": 12}))
    return folder


def test_the_runs_summaries_are_found_for_its_rows_even_with_a_torn_end(tmp_path: Path, source: Path) -> None:
    data, summaries = half_lost(tmp_path)
    with (source / UNITS).open("ab") as file:
        file.write(b'{"k": "summary:half a li')
    assert transfer.summaries_of(transfer.read_source(source), data, 0) == summaries


def torn(folder: Path) -> None:
    blob = (folder / UNITS).read_bytes()
    (folder / UNITS).write_bytes(blob[: blob.rfind(b"{")])
    (folder / "result.json").unlink()


def damaged(folder: Path) -> None:
    with (folder / UNITS).open("ab") as file:
        file.write(b"\0\n")


def elsewhere(folder: Path) -> None:
    lines = (folder / UNITS).read_text().splitlines(keepends=True)
    (folder / UNITS).write_text("".join([lines[0].replace('"engine"', '"motor"'), *lines[1:]]))


def empty(folder: Path) -> None:
    (folder / UNITS).write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "words", "says"),
    [
        (None, ["--seed", "1"], "run on other rows: seed 0 there, 1 here"),
        (None, ["--limit", "4"], "run on other rows: pairs 12 there, 4 here"),
        (lambda f: (f.parent / "half.json").write_text((f.parent / "half.json").read_text() + " "), [], "rows: data"),
        (lambda f: (f / UNITS).unlink(), [], f"holds no run of popi eval --out: cannot read {UNITS}"),
        (lambda f: (f / "result.json").write_text("{"), [], "result.json: damaged"),
        (torn, [], "has no summary for 1 of 12 rows"),
        (damaged, [], "units.jsonl: damaged"),
        (empty, [], "units.jsonl: damaged"),
        (elsewhere, [], "units.jsonl: damaged, or not of popi eval --out"),
        (lambda f: (f / UNITS).write_text('{"settings": []}\n'), [], "units.jsonl: damaged"),
        (lambda f: (f / UNITS).write_text(10_000 * "[" + "\n"), [], "units.jsonl: damaged"),
        (lambda f: (f / "result.json").write_text('{"pairs": 12, "gap_closed": []}'), [], "result.json: damaged"),
        (lambda f: (f / "result.json").write_text('{"pairs": 12, "gap_closed": {"summary": {"accuracy": "x"}}}'), [],
         "result.json: damaged"),
        (None, ["--bundle", "nowhere"], "there is no bundle 'nowhere'"),
        (None, ["--share", "0.4"], "--share says how much --paraphrase changes"),
    ],
)
def test_what_is_not_that_run_is_refused_in_one_line(
    tmp_path: Path, source: Path, call: Command, spoil: Callable[[Path], Any] | None, words: list[str], says: str
) -> None:
    if spoil is not None:
        spoil(source)
    reader = [] if "--bundle" in words else ["--base"]
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="transfer: ") as refused:
        call(source, *reader, "--data", tmp_path / "half.json", "--format", "alignx", *words, "--out", out)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not out.exists() and not out.with_suffix(".units").exists()
