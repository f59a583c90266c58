"""Couples who want the same and show it otherwise; what is sampled keeps to the mask; a planted leak is found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from popi_edge import config
from popi_edge.engines.base import Engine
from popi_edge.errors import ConfigError
from popi_edge.vocabulary import Lexicon
from popi_training import attacker, behaviour, corpus, leaktest
from popi_training.attacker import Line, attack
from popi_training.evaluate import run
from popi_training.leaktest import Sampled, couples, label, line
from popi_training.users import Want
from tests.test_replies import Actor, pair_of
from tests.test_transfer import Command, command, tiny_base, tiny_bundle

FACTS = {t for texts in corpus.load().facts["held"].values() for t in texts}
HELD = corpus.load(heldout=True)


def test_two_want_the_same_and_show_it_in_other_signals_on_other_prompts() -> None:
    people = couples(100, None, 0)
    assert len({u.id for u, _ in people}) == 100 and couples(100, None, 0) == people != couples(100, None, 1)
    distracted = 0
    for (one, wants), (other, same) in zip(people[::2], people[1::2], strict=True):
        assert wants == same == label(one.wants) == label(other.wants)
        asked = [{getattr(s, "prompt", None) for s in u.signals} & {*HELD.prompts.values()} for u in (one, other)]
        assert not asked[0] & asked[1]
        assert {s.content_hash() for s in one.signals} != {s.content_hash() for s in other.signals}
        distracted += sum(bool(FACTS & {t for s in u.signals for t in s.texts()}) for u in (one, other))
    assert distracted > 75  # of a hundred


@pytest.mark.parametrize("signals", [1, 3, 16])
def test_the_number_of_signals_is_so_many_for_each_want(signals: int) -> None:
    for user, _ in couples(20, signals, 0):
        telling = [s for s in user.signals if not FACTS & {*s.texts()}]
        assert len(telling) == max(2, signals * len(user.wants))


def test_a_label_does_not_depend_on_the_order() -> None:
    a, b = Want("tone", "warm"), Want("length", "short")
    assert label([a, b]) == label([b, a]) == "length:short, tone:warm" != label([a])


@pytest.mark.parametrize(("count", "signals"), [(0, None), (3, None), (-2, None), (4, 0), (4, 17)])
def test_numbers_that_make_no_couples_are_refused(count: int, signals: int | None) -> None:
    with pytest.raises(ConfigError, match="--users is" if signals is None else "--signals is"):
        couples(count, signals, 0)


class Teller(Actor):
    """Says what the couple wants or, ``leaking``, repeats a fact from the prompt."""

    def __init__(self, leaking: bool) -> None:
        super().__init__({"": ""})
        self.leaking = leaking

    def stream(self, prompt: Sequence[int], *, max_tokens: int, **options: Any) -> Iterator[int]:
        text = self.tokenizer.decode(prompt)
        fact = next((f for f in sorted(FACTS) if f in text), "") if self.leaking else ""
        yield from self.tokenizer.encode(f"Likes short answers. {fact}")


@pytest.mark.parametrize("leaking", [False, True])
def test_a_planted_leak_is_found_among_people_who_want_the_same(leaking: bool) -> None:
    people = couples(80, None, 0)
    made = behaviour.summaries(pair_of(Teller(leaking)), [user for user, _ in people])
    lines = [
        Line(x["user"], x["wants"], tuple(x["signals"]), x["text"])
        for x in (line(user, wants, text) for (user, wants), (_, text, _) in zip(people, made, strict=True))
    ]
    found = attack(lines, same_wants=True)["guess"]
    assert found["accuracy"] > 0.85 and found["low"] > 0.5 if leaking else found["accuracy"] == 0.5, found


# on a real engine ---------------------------------------------------------------------------------------------
@pytest.fixture
def bundle(tmp_path: Path, tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    path, model = tiny
    tiny_base(path, monkeypatch)
    monkeypatch.setenv("POPI_THREADS", "1")
    return tiny_bundle(tmp_path / "ours.popi", model, 1)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(leaktest, monkeypatch, capsys)


def test_a_sampling_engine_samples_the_same_for_the_same_prompt_alone(bundle: Path) -> None:
    pair = run.open_pair(str(bundle), None, config.load())
    engine: Engine = Sampled(pair.engine, 1.3, 5)
    assert engine.tokenizer is pair.engine.tokenizer and engine.context_length == pair.engine.context_length
    ids = pair.engine.tokenizer.encode("Explain how a heat pump works.")

    def says(e: Engine, ids: list[int]) -> list[int]:
        return [*e.stream(ids, max_tokens=12, adapter="infer")]

    assert says(engine, ids) == says(engine, ids) != says(pair.engine, ids)
    other: Engine = Sampled(pair.engine, 1.3, 6)
    assert says(other, ids) != says(engine, ids)
    cold: Engine = Sampled(pair.engine, 1e-6, 5)
    assert says(cold, ids) == says(pair.engine, ids)
    user = couples(2, 1, 0)[0][0]
    [(_, text, _)] = behaviour.summaries(replace(pair, engine=engine), [user])
    assert Lexicon.load().accepts(text) and text != behaviour.summaries(pair, [user])[0][1]
    pair.engine.close()


def test_the_command_writes_the_attackers_lines_and_says_what_it_finds(
    tmp_path: Path, bundle: Path, call: Command
) -> None:
    words = ["--bundle", bundle, "--users", 4, "--signals", 1, "--seed", 2]
    texts = {}
    for name, more in (("greedy", []), ("sampled", ["--sampled", 1.3]), ("open", ["--no-mask"])):
        out = tmp_path / f"{name}.jsonl"
        found = json.loads(call(*words, *more, "--out", out))
        read = attacker.read(out)
        assert found["same_wants"] == attack(read, 2, same_wants=True) and found["all"] == attack(read, 2)
        assert (found["model"], found["mask"], found["sampled"]) == (
            "ours 1", name != "open", 1.3 if name == "sampled" else None
        )  # fmt: skip
        people = couples(4, 1, 2)
        assert [(x.user, x.wants) for x in read] == [(u.id, wants) for u, wants in people]
        assert [x.signals for x in read] == [tuple(t for s in u.signals for t in s.texts()) for u, _ in people]
        texts[name] = [x.text for x in read]
    lexicon = Lexicon.load()
    assert all(lexicon.accepts(t) for name in ("greedy", "sampled") for t in texts[name] if t)
    assert not all(lexicon.accepts(t) for t in texts["open"] if t)
    assert len({*map(tuple, texts.values())}) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--users", 7], "--users is 7"),
        (["--signals", 0], "--signals is 0"),
        (["--sampled", 0], "--sampled is 0.0; a temperature"),
        (["--bundle", "/nowhere"], "there is no bundle '/nowhere'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, call: Command, words: list[Any], says: str) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit, match="leaktest: ") as refused:
        call("--bundle", "popi-smol", *words, "--out", out)
    assert says in str(refused.value) and "\n" not in str(refused.value) and not out.exists()
