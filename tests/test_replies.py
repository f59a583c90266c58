"""Replies of whom, under what, judged how: the items' promises, win rates by hand and from a plain count, the local
generator's own replies, and a run that goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popi_edge import config, prompts
from popi_edge.engines.base import BaseEngine, Score
from popi_edge.errors import ConfigError
from popi_edge.generators.local import NO_REPEAT, NoRepeat
from popi_training import corpus, probes, replies, splits
from popi_training.evaluate import run
from popi_training.evaluate.journal import UNITS, Journal
from popi_training.replies import CONTEXTS, MOST_TOKENS, TEMPERATURE, Item, figures, items, sampled
from tests.test_evaluate_run import ToyTokenizer
from tests.test_transfer import Command, command, tiny_base, tiny_bundle

HELD = corpus.load(heldout=True)
quiet = lambda *_: None  # noqa: E731


# who is asked -------------------------------------------------------------------------------------------------
def test_users_want_one_told_pole_each_on_a_held_out_prompt_that_their_signals_are_not_about() -> None:
    found = items(100, 0)
    told = {d for d in HELD.dimensions if d in probes.DIMENSIONS} - splits.read().dimensions
    assert {i.want.dimension for i in found} == told and len(told) == 23
    of_prompt = {text: name for name, text in HELD.prompts.items()}
    pairs = {(p.dimension, p.prompt) for p in HELD.pairs}
    for item in found:
        assert (item.want.dimension, of_prompt[item.row.prompt]) in pairs
        assert item.row.prompt not in {t for s in item.row.signals for t in s.texts()}
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert (one.row.prompt, one.seed, one.want.dimension) == (other.row.prompt, other.seed, other.want.dimension)
        assert one.want.pole != other.want.pole and one.row.signals != other.row.signals
        assert (one.row.oracle, one.row.opposite_oracle) == (other.row.opposite_oracle, other.row.oracle)
    assert set(Counter(i.want.dimension for i in found).values()) == {4, 6}
    assert items(100, 0) == found and items(31, 0) == found[:31] and items(100, 1) != found


def test_a_pair_comes_again_only_when_all_have_come_and_under_another_seed() -> None:
    some = [i for i in items(23 * 24, 3) if i.want.dimension == "tone"]
    asked = [(i.row.prompt, i.seed) for i in some[::2]]
    assert len(asked) == 12 and len({p for p, _ in asked[:10]}) == 10 and asked[10][0] == asked[0][0]
    assert len(set(asked)) == 12 and len({i.row.id for i in some}) == 24


def test_a_set_without_a_probe_is_refused() -> None:
    assert {i.want.dimension for i in items(20, 0, "dimensions")} == splits.read().dimensions
    with pytest.raises(ConfigError, match="there is no set"):
        items(4, 0, "nothing")


# by hand ------------------------------------------------------------------------------------------------------
class Actor:
    """An engine that says what it is told to under a system message; a summary is ``said`` for everybody."""

    name, context_length, identity = "actor", 10_000, "actor-1"

    def __init__(self, lines: dict[str, str], said: str = "They like lists.", fail_after: int | None = None) -> None:
        self.tokenizer, self.lines, self.said = ToyTokenizer(), lines, said
        self.tokenizer.token_bytes = Bytes(self.tokenizer)  # type: ignore[attr-defined]
        self.fail_after, self.calls = fail_after, list[str]()

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def stream(self, prompt: Sequence[int], *, max_tokens: int, **options: Any) -> Iterator[int]:
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.options = options
        kind = "infer" if options["adapter"] == "infer" else "reply"
        self.calls.append(kind)
        text = self.tokenizer.decode(prompt)
        found = next((line for front, line in self.lines.items() if front and front in text), self.lines[""])
        yield from self.tokenizer.encode(self.said if kind == "infer" else found)[:max_tokens]

    def score(self, prompt: Sequence[int], completions: Sequence[Sequence[int]], **options: Any) -> list[Score]:
        bare = self.tokenizer.decode(prompt)
        assert not options and not any(said in bare for said in (*filter(None, self.lines), self.said or "?!"))
        return [Score(-0.5 * len(c), (-0.5,) * len(c)) for c in completions]

    def close(self) -> None:
        pass


class Bytes:
    """The bytes of a toy's token, under any id."""

    def __init__(self, tokenizer: ToyTokenizer) -> None:
        self.tokenizer = tokenizer

    def __getitem__(self, i: int) -> bytes:
        return self.tokenizer.words[i].encode()

    def __len__(self) -> int:
        return 10


def pair_of(actor: Actor) -> run.Pair:
    return run.Pair(actor, "infer", "generate", model="actor", identity="actor")  # type: ignore[arg-type]


def structured(count: int = 8) -> list[Item]:
    """Some who want lists or prose, of the items' own drawing."""
    return [i for i in items(23 * 2 * count, 0) if i.want.dimension == "structure"][:count]


def script() -> dict[str, str]:
    """What the actor says under the oracle of either pole, under its own summary and under nothing."""
    oracles = {i.want.pole: i.row.oracle for i in structured(2)}
    return {
        oracles["list"]: "- a\n- b\n- c", oracles["prose"]: "All in one.", "They like lists.": "- a\n- b", "": "- a",
    }  # fmt: skip


def test_every_rate_is_the_one_worked_out_by_hand() -> None:
    asked, actor = structured(), Actor(script())
    lines = sampled(asked, pair_of(actor), Journal(), quiet)
    # Items of a list: none 1, own 2, oracle 3 or 0. Half want lists, half want prose.
    for x in lines:
        lists = 1 if x["pole"] == "list" else -1
        scores = {"none": 1, "own": 2, "oracle": 3 if lists > 0 else 0, "opposite": 0 if lists > 0 else 3}
        assert {c: r["score"] for c, r in x["replies"].items()} == {c: lists * n for c, n in scores.items()}
        assert x["summary"] == "They like lists." and x["dimension"] == "structure"
    found = figures(lines, 0)
    rates = {c: w["all"]["rate"] for c, w in found["wins"].items()}
    # Own over none: right for who wants lists alone; over the opposite's: right for both (2 > 0, and 2 < 3).
    assert rates == {"own_over_none": 0.5, "oracle_over_none": 1, "own_over_opposite": 1}
    assert found["wins"]["own_over_none"]["structure"] == found["wins"]["own_over_none"]["all"]
    assert found["wins"]["oracle_over_none"]["all"]["low"] == 1
    assert (found["users"], found["prompts"], found["silent"]) == (8, 4, 0)
    assert found["replies"]["none"] == {"words": 2, "tokens": 3, "truncated": 0, "nats": 0.5}
    assert actor.calls.count("infer") == 8
    assert actor.calls.count("reply") == 4 * 4  # bare, own and both oracles of four prompts: a couple shares them all


def test_a_silent_bundle_ties_with_the_bare_prompt_and_a_long_reply_is_truncated() -> None:
    actor = Actor(script() | {"": "word " * 60}, said="")
    found = figures(sampled(structured(), pair_of(actor), Journal(), quiet), 0)
    assert found["silent"] == 1 and found["wins"]["own_over_none"]["all"]["rate"] == 0.5
    long = {"words": 48, "tokens": 96, "truncated": 1, "nats": 0.5}
    assert found["replies"]["own"] == found["replies"]["none"] == long
    assert found["replies"]["oracle"]["truncated"] == 0


def test_rates_are_the_probes_own_win_rates_and_intervals_hold_prompts_together() -> None:
    rng, lines = np.random.default_rng(0), list[dict[str, Any]]()
    for k in range(40):
        dimension, pole = (("emoji", "with_emoji"), ("length", "short"))[k % 2]
        texts = {c: "word 🙂 " * int(rng.integers(0, 4)) for c in CONTEXTS}
        scored = {
            c: {"text": t, "tokens": 1, "truncated": False, "nats": 1.0, "score": probes.score(t, dimension, pole)}
            for c, t in texts.items()
        }
        lines.append({"dimension": dimension, "pole": pole, "prompt": f"p{k % 5}", "summary": "x", "replies": scored})
    found = figures(lines, 0)["wins"]
    for a, b in (("own", "none"), ("oracle", "none"), ("own", "opposite")):
        by = {}
        for dimension, pole in (("emoji", "with_emoji"), ("length", "short")):
            mine = [x["replies"] for x in lines if x["dimension"] == dimension]
            by[dimension] = probes.win_rate([(r[a]["text"], r[b]["text"]) for r in mine], dimension, pole)
            assert found[f"{a}_over_{b}"][dimension]["rate"] == pytest.approx(by[dimension])
        whole = found[f"{a}_over_{b}"]["all"]
        assert whole["rate"] == pytest.approx(sum(by.values()) / 2) and whole["low"] < whole["rate"] < whole["high"]
    again = figures([dict(x) for x in lines for _ in range(9)], 0)["wins"]
    assert again["own_over_none"]["all"]["low"] == pytest.approx(found["own_over_none"]["all"]["low"])


def test_what_a_run_may_go_on_with_depends_on_items_sampling_and_bundle() -> None:
    asked, pair = structured(), pair_of(Actor({"": "a"}))
    base = replies.settings(pair, asked, "prompts", 0)
    assert replies.settings(pair, structured(), "prompts", 0) == base
    assert "0.7" in base["sampling"] and "96" in base["sampling"]
    for pair2, asked2, name in (
        (pair, asked[:-1], "data"),
        (pair, [replace(asked[0], seed=1), *asked[1:]], "data"),
        (replace(pair, identity="other"), asked, "bundle"),
    ):
        other = replies.settings(pair2, asked2, "prompts", 0)
        assert [k for k in base if base[k] != other[k]] == [name]


# on a real engine ---------------------------------------------------------------------------------------------
@pytest.fixture
def bundles(tmp_path: Path, tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    path, model = tiny
    tiny_base(path, monkeypatch)
    monkeypatch.setenv("POPI_THREADS", "1")
    both = {"warm": ("infer",), "joint": ("infer", "generate")}
    return {n: tiny_bundle(tmp_path / f"{n}.popi", model, 1, roles) for n, roles in both.items()}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(replies, monkeypatch, capsys)


def test_the_command_samples_of_each_bundle_and_goes_on_where_it_was_cut_off(
    tmp_path: Path, bundles: dict[str, Path], call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, limit = list[Any](), 3
    stream = BaseEngine.stream

    def counted(self: BaseEngine, prompt: Sequence[int], **options: Any) -> Iterator[int]:
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append((prompt, options))
        return stream(self, prompt, **options)

    monkeypatch.setattr(BaseEngine, "stream", counted)
    out, listing = tmp_path / "out.json", tmp_path / "listing.jsonl"
    words = ["--bundles", *(f"{n}={p}" for n, p in bundles.items()), "--replies", 2, "--listing", listing]
    with pytest.raises(KeyboardInterrupt):
        call(*words, "--out", out)
    assert len((tmp_path / "out.units" / "warm" / UNITS).read_text().splitlines()) == 1 + 3 and not out.exists()
    limit = 1000
    printed = call(*words, "--out", out)
    done = len(calls)
    found = json.loads(out.read_text())
    assert call(*words, "--out", out) == printed and len(calls) == done and json.loads(out.read_text()) == found
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    assert [x["bundle"] for x in lines] == ["warm", "warm", "joint", "joint"]
    assert [c["adapter"] for c in found["conditions"].values()] == [False, True]
    by = {name: [x for x in lines if x["bundle"] == name] for name in bundles}
    for name, some in by.items():
        assert found["conditions"][name]["wins"] == figures(some, 0)["wins"]
        assert f"{name} 1, 2 users, 1 prompts" in printed
    distinct = {(x["bundle"], x["prompt"], t) for x in lines for t in (x["summary"], x["oracle"], x["opposite"], "")}
    assert done == 4 + len(distinct)  # four summaries, and each reply once
    assert [x["summary"] for x in by["warm"]] == [x["summary"] for x in by["joint"]]  # the same adapter writes them
    assert by["warm"][0]["replies"] != by["joint"][0]["replies"]
    whole = tmp_path / "whole.json"
    call(*words, "--out", whole)
    assert json.loads(whole.read_text()) == found  # cut off or not


def test_a_reply_is_what_the_engine_says_under_the_rule_against_repeating(bundles: dict[str, Path]) -> None:
    pair, item = run.open_pair(str(bundles["joint"]), None, config.load()), items(1, 0)[0]
    tokenizer = pair.engine.tokenizer
    made = {text: replies.reply(pair, item.row.prompt, text, item.seed) for text in ("", item.row.oracle)}
    for text, found in made.items():
        ids = prompts.generate_ids(tokenizer, item.row.prompt, summary=text or None)
        rule = NoRepeat(NO_REPEAT, len(tokenizer.token_bytes))
        expected = pair.engine.generate(
            ids, max_tokens=MOST_TOKENS, temperature=TEMPERATURE, seed=item.seed, constraint=rule, adapter="generate"
        )
        assert (found["text"], found["truncated"]) == (expected.text, not expected.finished)
        reply = prompts.reply_ids(tokenizer, expected.text)
        (likely,) = pair.engine.score(prompts.generate_ids(tokenizer, item.row.prompt), [reply], adapter=None)
        assert found["nats"] == pytest.approx(-sum(likely.tokens) / len(reply))
    assert made[""] != made[item.row.oracle] and made[""] == replies.reply(pair, item.row.prompt, "", item.seed)
    assert made[""] != replies.reply(pair, item.row.prompt, "", item.seed + 1)
    pair.engine.close()


def test_the_engine_is_given_the_rule() -> None:
    actor = Actor({"": "a"})
    replies.reply(pair_of(actor), "Ask.", "", 7)
    rule = actor.options["constraint"]
    state = rule.start()
    for token in (1, 2, 3, 4, 1, 2, 3):
        state = rule.advance(state, token)
    assert {*range(10)} - {*rule.allowed(state, 9).tolist()} == {4}
    assert (actor.options["temperature"], actor.options["seed"]) == (0.7, 7)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a=b", "a=c"], "there are two called a"),
        (["../x"], "is not NAME=PATH"),
        (["a="], "is not NAME=PATH"),
        (["a=/nowhere"], "there is no bundle '/nowhere'"),
    ],
)
def test_bad_bundles_are_one_line(tmp_path: Path, call: Command, words: list[str], says: str) -> None:
    with pytest.raises(SystemExit, match="replies: ") as refused:
        call("--bundles", *words, "--replies", 2, "--out", tmp_path / "out.json")
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not [*tmp_path.iterdir()]


def test_names_are_the_conditions() -> None:
    assert replies.named(["popi-smol", "joint=/x/y.popi"]) == {"popi-smol": "popi-smol", "joint": "/x/y.popi"}
