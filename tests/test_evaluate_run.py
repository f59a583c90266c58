"""The evaluation end to end on a model whose every log-probability is known, so that each figure is worked out by hand.

The toy is a unigram model: a reply's word costs 1 nat where it stands in the prompt already, else 2. As an inference
model it names the last word of the first preferred reply. It is exact, unlike a real engine; what it cannot show is
that a real engine's scores are right, which the engines' own tests do.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from popi_edge import prompts
from popi_edge.engines.base import Score
from popi_edge.errors import ConfigError, EngineError, PopiError, StoreError
from popi_edge.summarize import Decoding
from popi_training import compare
from popi_training.cli import Meter, evaluate
from popi_training.evaluate import report, run
from popi_training.evaluate.conditions import CONDITIONS, draw_donors, user_signals
from popi_training.evaluate.data import HISTORY, Dataset, load
from popi_training.evaluate.journal import UNITS, Journal
from popi_training.people import leaks
from tests.tiny import TEMPLATE

PLAIN = [c for c in CONDITIONS if c != "untrained_summary"]
"""The conditions of a bundle in which nothing is trained."""

WARM, COLD = "Write like warm summer.", "Write like cold winter."
REPLY = {WARM: "summer", COLD: "winter"}
PIECES = re.compile(r"\w+|\W")


class ToyTokenizer:
    """A word or a single other character a token; the control tokens are those of ChatML."""

    chat_template = TEMPLATE
    bos = ""
    controls = ("<|im_start|>", "<|im_end|>")
    eos = 1
    eos_ids = (1,)

    def __init__(self) -> None:
        self.words = dict(enumerate(self.controls))

    def control(self, name: str) -> int | None:
        return self.controls.index(name) if name in self.controls else None

    def encode(self, text: str) -> list[int]:
        ids = [2 + (zlib.crc32(word.encode()) >> 2) for word in PIECES.findall(text)]
        for i, word in zip(ids, PIECES.findall(text), strict=True):
            assert self.words.setdefault(i, word) == word
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[i] for i in ids if i > 1)


class Toy:
    """The toy model as an engine; ``fail_after`` calls it is cut off, as by Ctrl-C."""

    name = "toy"
    context_length = 10_000
    identity = "toy-1"

    def __init__(self, fail_after: int | None = None) -> None:
        self.tokenizer = ToyTokenizer()
        self.calls: list[str] = []
        self.prompts: list[list[int]] = []
        self.fail_after = fail_after
        self.closed = False

    def _call(self, kind: str) -> None:
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(kind)

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def stream(self, prompt: Sequence[int], **options: Any) -> Iterator[int]:
        self._call("infer")
        text = self.tokenizer.decode(prompt)
        liked = re.search(r"liked this reply:\n> .*?(\w+)\n", text)
        yield from self.tokenizer.encode(f"They like {liked.group(1) if liked else 'nothing'}.")

    def score(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, adapter: str | None = None
    ) -> list[Score]:
        self._call("score")
        self.prompts.append(list(prompt))
        tokens = [tuple(-1.0 if t in prompt else -2.0 for t in c) for c in completions]
        return [Score(sum(t), t) for t in tokens]

    def close(self) -> None:
        self.closed = True


def row(number: int, persona: str, times: int = 2, past: int = 3) -> dict[str, Any]:
    """Asked for a word; the preferred reply is the persona's own word, said once more where ``times`` is 3."""
    other = REPLY[COLD if persona == WARM else WARM]
    kin = [{"prompt": f"Say anything {number} {k}", "chosen": REPLY[persona], "rejected": other} for k in range(past)]
    chosen, rejected = " ".join([REPLY[persona]] * times), f"{other} {other}"
    return {
        "prompt": f"Say something {number}", "chosen": chosen, "rejected": rejected,
        "ground_truth_persona": persona, "profile": f"Person {number}", HISTORY: kin,
    }  # fmt: skip


def dataset(folder: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> Dataset:
    if rows is None:
        rows = [row(n, p, times=3 if n < 2 else 2) for n in range(6) for p in (WARM, COLD)]
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), "utf-8")
    return load(path, "alignx", **options)


def quiet(stage: str, work: int, whole: int) -> None:
    assert 0 < work <= whole


def evaluated(data: Dataset, toy: Toy, journal: Journal | None = None, **options: Any) -> dict[str, Any]:
    pair = run.Pair(toy, model="toy")  # type: ignore[arg-type]
    return run.evaluate(data, pair, journal or Journal(), advance=quiet, **options)[0]


def test_a_summary_as_long_as_may_be_and_one_that_repeats_its_signals_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(tmp_path)
    limit, repeated = prompts.spec()["limits"]["summary_tokens"], "violet ladders and a cactus beside the piano"
    choice = replace(data.rows[0].signals[0], chosen=f"I dreamt of {repeated} again.")
    data = replace(data, rows=(replace(data.rows[0], signals=(choice, *data.rows[0].signals[1:])), *data.rows[1:]))
    said = [{"text": repeated, "tokens": limit, "status": "draft"}]
    said += [{"text": "Warm.", "tokens": 2, "status": "draft"}] * 11
    monkeypatch.setattr(run, "summarize_all", lambda *_, **__: said)
    result = evaluated(data, Toy())
    assert leaks(repeated, user_signals(data.rows[0], False)) > 0
    assert (result["truncated"], result["leak_rate"]) == (1 / 12, 1 / 12)
    assert "as long as may be 0.08, with words in a row of the signals 0.08." in report.text(result | {"half": "all"})


def test_every_figure_is_the_one_worked_out_by_hand(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    result = evaluated(data, Toy())
    got = result["conditions"]
    assert list(got) == PLAIN
    assert got["none"]["accuracy"] == 0.5  # m is 0 on every row
    # Bare: four of twelve pairs have the longer reply preferred (its third word costs more), the others tie.
    assert result["baselines"]["likelihood"]["accuracy"] == pytest.approx((0 * 4 + 0.5 * 8) / 12)
    assert (got["none"]["contrast"], got["none"]["tokens"]) == (0.5, 0)
    # Own sentence and own summary hold the preferred word alone: m > 0 and above the opposite's, for all.
    for name in ("oracle_summary", "summary"):
        assert (got[name]["accuracy"], got[name]["contrast"]) == (1, 1)
        assert (got[name]["low"], got[name]["high"]) == (1, 1)
    # Raw signals hold both words, so they move both replies alike, word for word: m is one nat a word of difference.
    assert got["raw"]["accuracy"] == pytest.approx((1 * 4 + 0.5 * 8) / 12)
    assert got["raw"]["contrast"] == 0.5
    assert result["baselines"]["longer"]["accuracy"] == pytest.approx((1 * 4 + 0.5 * 8) / 12)
    assert result["distinct_summaries"] == 2
    assert result["statuses"] == {"draft": 12}
    limit = prompts.spec()["limits"]["summary_tokens"]
    pair = run.Pair(Toy(), model="toy")  # type: ignore[arg-type]
    said = run.summarize_all(data.rows, pair, Journal(), profile=False, advance=quiet)
    assert result["truncated"] == sum(s["tokens"] >= limit for s in said) / 12 == 0
    found = [leaks(s["text"], user_signals(r, False)) > 0 for r, s in zip(data.rows, said, strict=True)]
    assert result["leak_rate"] == sum(found) / 12
    assert (result["pairs"], result["prompts"], result["users"]) == (12, 6, 12)


class Faint(Toy):
    """The same with a word's costs closer together than the places of a listing."""

    def score(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, adapter: str | None = None
    ) -> list[Score]:
        found = super().score(prompt, completions, adapter=adapter)
        return [Score(s.total * 1e-6, tuple(t * 1e-6 for t in s.tokens)) for s in found]


def test_the_places_of_a_listing_decide_no_tie(tmp_path: Path) -> None:
    data, path = dataset(tmp_path), tmp_path / "listing.jsonl"
    for toy in (Toy(), Faint()):
        pair = run.Pair(toy, model="toy")  # type: ignore[arg-type]
        result, lines = run.evaluate(data, pair, Journal(), advance=quiet)
        run.write_listing(path, lines)
        read = compare.read(path)
        for d in compare.compare(read, read)["differences"]:
            assert d["was"] == pytest.approx(result["conditions"][d["before"]][d["metric"]])
        assert result["conditions"]["summary"]["accuracy"] == 1
    assert run.short_margins(1.23456, -0.00004) == [1.2346, -0.0] and run.short_margins(2.00001, 2.00002)[0] == 2.00001


def test_a_strangers_summary_is_right_as_often_as_the_strangers_are_kin(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    result = evaluated(data, Toy(), seed=5)
    donors = draw_donors(data.rows, 5)
    kin = [(r.user_key == data.rows[d.shuffled].user_key) for r, d in zip(data.rows, donors, strict=True)]
    too = [(r.user_key == data.rows[d.shuffled_too].user_key) for r, d in zip(data.rows, donors, strict=True)]
    got = result["conditions"]["shuffled_summary"]
    assert got["accuracy"] == pytest.approx(sum(kin) / 12)
    assert got["contrast"] == pytest.approx(sum(0.5 + (a - b) / 2 for a, b in zip(kin, too, strict=True)) / 12)
    test = next(t for t in result["tests"] if t["b"] == "shuffled_summary" and t["metric"] == "accuracy")
    assert test["difference"] == pytest.approx(1 - sum(kin) / 12)


def test_tokens_are_all_that_a_context_adds(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    toy = Toy()
    got = evaluated(data, toy)["conditions"]
    bare = len(toy.tokenizer.encode(prompts.generate_system(None)))
    with_oracle = [len(toy.tokenizer.encode(prompts.generate_system(r.oracle))) for r in data.rows]
    assert got["oracle_summary"]["tokens"] == sum(with_oracle) / 12 - bare
    with_raw = [len(toy.tokenizer.encode(prompts.raw_system(r.signals, toy.tokenizer))) for r in data.rows]
    assert got["raw"]["tokens"] == sum(with_raw) / 12 - bare
    assert got["raw"]["tokens"] > got["summary"]["tokens"] > 0


def test_shorter_is_right_and_personas_stand_apart(tmp_path: Path) -> None:
    rows = [row(n, p, times=1 if p == COLD else 3) for n in range(4) for p in (WARM, COLD)]
    result = evaluated(dataset(tmp_path, rows), Toy())
    assert result["shorter"]["pairs"] == 4
    # winter costs 2 bare, the two words against it 4: the bare model prefers the shorter reply.
    assert result["shorter"]["baselines"]["likelihood"]["accuracy"] == 1
    assert result["by_persona"][WARM]["baselines"]["likelihood"]["accuracy"] == 0
    assert result["by_persona"][COLD]["baselines"]["longer"]["accuracy"] < 1
    assert sum(t["pairs"] for t in result["by_persona"].values()) == result["pairs"]


def test_too_little_to_say_leaves_the_prompt_bare(tmp_path: Path) -> None:
    result = evaluated(dataset(tmp_path, [row(n, p, past=1) for n in range(3) for p in (WARM, COLD)]), Toy())
    assert result["statuses"] == {"insufficient": 6}
    assert (result["distinct_summaries"], result["summary_tokens"]) == (0, None)
    summary = result["conditions"]["summary"]
    assert (summary["accuracy"], summary["contrast"], summary["tokens"]) == (0.5, 0.5, 0)


def test_the_profile_is_a_second_table(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    plain, both = evaluated(data, Toy()), evaluated(data, Toy(), profile=True)
    assert "profile" not in plain
    assert {k: v for k, v in both.items() if k != "profile"} == plain
    assert both["profile"]["conditions"]["raw"]["tokens"] > plain["conditions"]["raw"]["tokens"]
    assert both["profile"]["conditions"]["oracle_summary"] == plain["conditions"]["oracle_summary"]
    assert both["profile"]["conditions"]["summary"]["accuracy"] == 1


def test_the_result_is_json_and_text_even_where_nothing_can_be_said(tmp_path: Path) -> None:
    data = dataset(tmp_path, [row(1, WARM), row(2, COLD)])
    result = evaluated(data, Toy(), profile=True) | {"half": "all"}
    json.dumps(result, allow_nan=False)
    assert result["gap_closed"]["oracle_summary"] == {"accuracy": 1.0, "contrast": 1.0}
    lines = report.text(result).splitlines()
    for name in (*PLAIN, "longer"):
        assert sum(line.startswith(f"{name} ") for line in lines) >= 4
    assert any(line.startswith("With the profile") for line in lines)


def test_nothing_is_computed_twice_and_like_prompts_follow_each_other(tmp_path: Path) -> None:
    toy = Toy()
    evaluated(dataset(tmp_path), toy, profile=True)
    assert toy.calls == sorted(toy.calls)  # every summary before the first score
    assert toy.prompts == sorted(toy.prompts)
    assert toy.calls.count("infer") == 24


def test_a_trained_bundle_is_shown_beside_the_untouched_base(tmp_path: Path) -> None:
    """The toy's trained summaries name the liked word, its untrained ones say something of no use."""

    class Trained(Toy):
        def stream(self, prompt: Sequence[int], **options: Any) -> Iterator[int]:
            if options["adapter"] == "infer":
                return super().stream(prompt, **options)
            self._call("infer")
            return iter(self.tokenizer.encode(" nothing. More."))

    toy = Trained()
    how = Decoding(opening="Prefers", sentences=1)
    pair = run.Pair(toy, model="toy", infer_adapter="infer", untrained=how)  # type: ignore[arg-type]
    result, listing = run.evaluate(dataset(tmp_path), pair, Journal(), advance=quiet)
    got = result["conditions"]
    assert list(got) == list(CONDITIONS)
    assert got["summary"]["contrast"] == 1
    assert got["untrained_summary"]["contrast"] == 0.5  # the same words for everybody
    assert got["untrained_summary"]["tokens"] > 0
    assert {line["text"] for line in listing} == {"They like summer.", "They like winter."}
    for line in listing:
        assert set(line["margins"]) == set(CONDITIONS) and line["margins"]["none"] == [0, 0]
        own, other = line["margins"]["summary"]
        assert own > 0 > other and len(set(line["margins"]["untrained_summary"])) == 1
    test = next(t for t in result["tests"] if t["b"] == "untrained_summary" and t["metric"] == "contrast")
    assert test["difference"] == 0.5


def test_rows_that_name_a_mirror_are_contrasted_with_it(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    kin = {(r.prompt, r.user_key): r.id for r in data.rows}
    rows = [replace(r, mirror=kin[r.prompt, COLD if r.user_key == WARM else WARM]) for r in data.rows]
    for r, donor in zip(rows, draw_donors(rows, 3), strict=True):
        assert rows[donor.opposite].id == r.mirror
    lost = [replace(r, mirror="nobody") for r in rows]
    with pytest.raises(ConfigError, match="none of the opposite persona"):
        draw_donors(lost, 3)


# resuming -----------------------------------------------------------------------------------------------------
def units(folder: Path) -> int:
    return len((folder / UNITS).read_bytes().splitlines()) - 1


def in_folder(data: Dataset, toy: Toy, folder: Path, seed: int = 0) -> dict[str, Any]:
    pair = run.Pair(toy, model="toy", identity="toy")  # type: ignore[arg-type]
    with Journal(folder, pair.settings(data, seed)) as journal:
        return run.evaluate(data, pair, journal, seed=seed, advance=quiet)[0]


@pytest.mark.parametrize("done", [0, 1, 7, 12, 13, 40])
def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(tmp_path: Path, done: int) -> None:
    data = dataset(tmp_path)
    whole = Toy()
    expected = in_folder(data, whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        in_folder(data, Toy(fail_after=done), tmp_path / "run")
    assert units(tmp_path / "run") == done
    with (tmp_path / "run" / UNITS).open("ab") as f:
        f.write(b'{"k": "score:half a li')  # torn by the kill
    rest = Toy()
    assert in_folder(data, rest, tmp_path / "run") == expected
    assert len(rest.calls) == len(whole.calls) - done
    again = Toy()
    assert in_folder(data, again, tmp_path / "run") == expected
    assert again.calls == []


def test_a_larger_limit_continues_a_smaller_one(tmp_path: Path) -> None:
    small = Toy()
    in_folder(dataset(tmp_path, limit=6), small, tmp_path / "run")
    large, fresh = Toy(), Toy()
    assert in_folder(dataset(tmp_path), large, tmp_path / "run") == in_folder(dataset(tmp_path), fresh, tmp_path / "x")
    assert len(large.calls) < len(fresh.calls)


def change_data(data: Dataset, toy: Toy, folder: Path) -> tuple[Dataset, int]:
    return dataset(folder, [row(n, p) for n in range(3) for p in (WARM, COLD)]), 0


def change_seed(data: Dataset, toy: Toy, folder: Path) -> tuple[Dataset, int]:
    return data, 1


def change_engine(data: Dataset, toy: Toy, folder: Path) -> tuple[Dataset, int]:
    toy.identity = "toy-2"
    return data, 0


@pytest.mark.parametrize(("change", "name"), [(change_data, "data"), (change_seed, "seed"), (change_engine, "engine")])
def test_a_run_with_other_settings_is_refused(tmp_path: Path, change: Callable[..., Any], name: str) -> None:
    data = dataset(tmp_path)
    in_folder(data, Toy(), tmp_path / "run")
    before = (tmp_path / "run" / UNITS).read_bytes()
    toy = Toy()
    other, seed = change(data, toy, tmp_path)
    with pytest.raises(ConfigError, match=f"another {name}"):
        in_folder(other, toy, tmp_path / "run", seed)
    assert toy.calls == [] and (tmp_path / "run" / UNITS).read_bytes() == before


@pytest.mark.parametrize("damage", [b"\0\0\n", b'{"k": 1}\n', b"[]\n", 10_000 * b"[" + b"\n"])
def test_a_damaged_progress_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    data = dataset(tmp_path)
    in_folder(data, Toy(), tmp_path / "run")
    with (tmp_path / "run" / UNITS).open("ab") as f:
        f.write(damage)
    with pytest.raises(ConfigError, match=r"line \d+ is damaged"):
        in_folder(data, Toy(), tmp_path / "run")
    (tmp_path / "run" / UNITS).write_text('{"settings": "none"}\n')
    with pytest.raises(ConfigError, match="line 1 is damaged"):
        in_folder(data, Toy(), tmp_path / "run")


SUMMARY = {"text": "x", "tokens": 3, "status": "draft", "reason": "", "prompt_tokens": 9}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("score", v) for v in (None, "ab", [], [1.0], [1.0, "x"], [1.0, float("nan")], [True, 1.0], {})),
        *(("summary", v) for v in (None, "x", {}, SUMMARY | {"text": "\ud800"})),
        *(("summary", SUMMARY | {k: 3.5}) for k in ("text", "tokens", "status")),
        *(("choice", {"letter": "A", "logp": v}) for v in ("ab", [1.0], [1.0, None])),
        ("choice", {"letter": "C", "logp": None}), ("logprobs", "x"), ("logprobs", True),
    ],
)  # fmt: skip
def test_a_unit_that_is_none_of_its_kind_is_damage(tmp_path: Path, kind: str, value: Any) -> None:
    good = [("score", [-1.5, 0]), ("summary", SUMMARY), ("choice", {"letter": None, "logp": [-1.0, -2.0], "text": ""})]
    lines = [{"settings": {}}, *({"k": f"{k}:ab", "v": v} for k, v in [*good, ("logprobs", 0), ("mine", [])])]
    (tmp_path / UNITS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Journal(tmp_path, {}) as journal:
        assert journal["score:ab"] == [-1.5, 0]
    with (tmp_path / UNITS).open("a") as file:
        file.write(json.dumps({"k": f"{kind}:cd", "v": value}) + "\n")
    with pytest.raises(ConfigError, match="line 7 is damaged"):
        Journal(tmp_path, {})


def test_an_out_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PopiError, match="cannot use"):
        Journal(tmp_path / "file" / "run", {})


def test_where_nothing_can_be_written_nothing_is_computed(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "open_pair", lambda *_: pytest.fail("a model was opened"))
    dataset(tmp_path)
    words = ("--data", str(tmp_path / "rows.json"), "--format", "alignx")
    for option in ("--out", "--summaries"):
        done = command(*words, option, str(tmp_path / "rows.json" / "x" / "y"))
        assert isinstance(done.exception, StoreError) and "Not a directory" in str(done.exception)


# the command --------------------------------------------------------------------------------------------------
@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """``popi eval`` with the toy in place of a bundle's model."""
    toys: list[Toy] = []

    def open_pair(bundle: str | None, engine: str | None, settings: Any) -> run.Pair:
        toys.append(Toy())
        return run.Pair(toys[-1], model="toy")  # type: ignore[arg-type]

    monkeypatch.setattr(run, "open_pair", open_pair)

    def call(*args: str) -> Any:
        return CliRunner().invoke(evaluate, [*args], catch_exceptions=True)

    yield call
    assert all(t.closed for t in toys)


def test_the_command_prints_the_contracts_json(tmp_path: Path, command: Callable[..., Any]) -> None:
    dataset(tmp_path)
    out = tmp_path / "out"
    args = ["--data", str(tmp_path / "rows.json"), "--format", "alignx", "--json", "--out", str(out)]
    done = command(*args, "--summaries", str(tmp_path / "summaries.jsonl"), "--profile")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert set(result["conditions"]) == set(PLAIN)
    for c in result["conditions"].values():
        assert list(c) == ["accuracy", "low", "high", "contrast", "contrast_low", "contrast_high", "tokens"]
    for key in ("baselines", "gap_closed", "tests", "users", "pairs", "shorter", "by_persona", "distinct_summaries",
                "dropped", "engine", "model", "seed", "format", "half", "profile"):  # fmt: skip
        assert key in result
    assert json.loads((out / "result.json").read_text("utf-8")) == result
    listed = [json.loads(line) for line in (tmp_path / "summaries.jsonl").read_text("utf-8").splitlines()]
    assert len(listed) == 24
    assert {(x["persona"], x["text"]) for x in listed} == {(WARM, "They like summer."), (COLD, "They like winter.")}
    assert "100%" in done.stderr


def test_the_command_prints_a_table(tmp_path: Path, command: Callable[..., Any]) -> None:
    dataset(tmp_path)
    done = command("--data", str(tmp_path / "rows.json"), "--format", "alignx", "--half", "dev")
    assert done.exit_code == 0, done.output
    assert "alignx, dev rows, seed 0" in done.stdout and "other half" in done.stdout
    assert re.search(r"^oracle_summary +1\.000 +1\.000 to 1\.000 +1\.000", done.stdout, re.M)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--format", "alignx"], 2),
        (["--data", "{folder}/missing.json", "--format", "alignx"], 2),
        (["--data", "{folder}/rows.json", "--format", "csv"], 2),
        (["--data", "{folder}/rows.json", "--format", "alignx", "--limit", "0"], 2),
        (["--data", "{folder}/rows.json", "--format", "alignx", "--half", "other"], 2),
        (["--data", "{folder}/rows.json", "--format", "onestopenglish"], 1),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, command: Callable[..., Any], args: list[str], code: int) -> None:
    dataset(tmp_path)
    done = command(*[a.format(folder=tmp_path) for a in args])
    if code == 2:
        assert done.exit_code == 2 and "Error:" in done.stderr
    else:
        assert isinstance(done.exception, PopiError) and "\n" not in str(done.exception)


def test_a_second_table_of_rows_without_a_profile_is_refused_before_a_model_is_opened(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "open_pair", lambda *_: pytest.fail("a model was opened"))
    dataset(tmp_path, [{**row(n, p), "profile": None} for n in range(4) for p in (WARM, COLD)])
    done = command("--data", str(tmp_path / "rows.json"), "--format", "alignx", "--profile")
    assert isinstance(done.exception, ConfigError) and "rows.json: no row has a profile" in str(done.exception)


def test_an_engine_that_fails_loses_nothing(tmp_path: Path) -> None:
    class Failing(Toy):
        def score(self, *args: Any, **options: Any) -> list[Score]:
            if self.calls.count("score") == 5:
                raise EngineError("a prompt that does not fit")
            return super().score(*args, **options)

    data = dataset(tmp_path)
    with pytest.raises(EngineError, match=r"^row alignx-000\d\d: a prompt that does not fit$"):
        in_folder(data, Failing(), tmp_path / "run")
    assert units(tmp_path / "run") == 12 + 5


def test_a_row_that_no_context_holds_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    toy = Toy()
    long = row(1, COLD) | {"rejected": "word " * 5_000}
    with pytest.raises(ConfigError, match=r"^row alignx-00003: its prompt and reply are 10,\d+ tokens; 10,000 fit"):
        evaluated(dataset(tmp_path, [row(0, WARM), row(0, COLD), long, row(1, WARM)]), toy)
    assert toy.calls == []


def test_progress_tells_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    for _ in range(4):
        meter("scores", 25, 100)
    meter.close()
    assert capsys.readouterr().err.splitlines() == ["scores: 100%, 0 min left"]
    assert isinstance(evaluate, click.Command)
