"""The attacker finds what was planted, finds nothing where there is nothing, and counts what a hand would count."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from popi_edge.errors import ConfigError
from popi_edge.vocabulary import Lexicon
from popi_training import attacker, corpus
from popi_training.attacker import FEATURES, Bag, Likeness, Line, attack, counts, fit, guess

SYLLABLES = ("ka", "mo", "ri", "tu", "ven", "sol", "bex", "dra", "pim", "lo")


def rare_word(rng: random.Random) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(4))


def world(seed: int, write: Callable[[list[str], list[str], random.Random], str], people: int = 60) -> list[Line]:
    """People of the corpus: some wants what one of six poles stands for; signals are what people of that pole say and
    three facts of their own, each with a rare word; ``write`` makes a summary of the pole's phrasings and the facts."""
    rng, made = random.Random(seed), corpus.load()
    facts = [f for voices in made.facts["train"].values() for f in voices]
    poles = [p for name in ("length", "tone", "risk") for p in made.dimensions[name].poles.values()]
    lines = []
    for i in range(people):
        pole = poles[i % len(poles)]
        own = [f"{f} {rare_word(rng)}." for f in rng.sample(facts, 3)]
        said = rng.sample([*pole.phrasings["statement"], *pole.phrasings["post"]], 4)
        text = write(list(pole.phrasings["summary"]), own, rng)
        lines.append(Line(f"u{i}", pole.id, tuple(rng.sample([*own, *said], 7)), text))
    return lines


def honest(phrasings: list[str], own: list[str], rng: random.Random) -> str:
    return rng.choice(phrasings)


def one_text(phrasings: list[str], own: list[str], rng: random.Random) -> str:
    return phrasings[0]


def leaking(phrasings: list[str], own: list[str], rng: random.Random) -> str:
    return f"{rng.choice(phrasings)} Mentions {own[0].split()[-1]}"


def copying(phrasings: list[str], own: list[str], rng: random.Random) -> str:
    """Ordinary words alone, in the order of a fact."""
    words = own[1].split()[:-1]
    return f"{rng.choice(phrasings)} Says that {' '.join(words[:5])}."


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("write", [leaking, copying])
def test_a_planted_leak_is_found(write: Callable[[list[str], list[str], random.Random], str], same: bool) -> None:
    found = guess(world(1, write), same_wants=same)
    assert found["accuracy"] > 0.97 and found["low"] > 0.9, found
    if write is leaking:
        assert found["feature"]["rare_words"] > 0.97


def test_summaries_of_wants_alone_give_one_half_among_people_who_want_the_same() -> None:
    worlds = [guess(world(seed, honest), seed, same_wants=True) for seed in range(8)]
    inside = [w["low"] <= 0.5 <= w["high"] for w in worlds]
    assert sum(inside) >= 7, [(w["low"], w["high"]) for w in worlds]
    assert abs(np.mean([w["accuracy"] for w in worlds]) - 0.5) < 0.05
    # One text a want, and every partner asked about both ways: what is right for one is wrong for the other.
    assert guess(world(9, one_text), same_wants=True)["accuracy"] == 0.5


def test_a_summary_says_what_its_person_wants_so_others_are_told_apart() -> None:
    lines = world(2, honest, 120)
    assert guess(lines)["low"] > 0.5 > guess(lines, same_wants=True)["low"]


def test_the_right_person_never_wins_where_two_are_the_same() -> None:
    lines = [Line(f"u{i}", "a", ("The same words.",), "Likes short words.") for i in range(12)]
    found = guess(lines)
    assert found["accuracy"] == found["low"] == found["high"] == 0.5 and set(found["feature"].values()) == {0.5}


def test_both_of_a_couple_are_one_observation_of_the_interval() -> None:
    couples = [pair for k in range(4) for pair in ((f"a{k}", f"b{k}"), (f"b{k}", f"a{k}"))]
    low, high = attacker.over_people(np.array([1.0, 1, 1, 1, 0, 0, 1, 1]), couples) or (0, 0)
    # Off the mean by ½, ½, −1½ and ½ a couple: 3/8², times 4/3, is ¼².
    assert (low, high) == (pytest.approx(0.75 - 1.96 / 4), 1.0)
    assert attacker.over_people(np.array([1.0, 0] * 4), couples) == (0.5, 0.5)  # whatever a couple says, it is one half
    assert attacker.over_people(np.array([1.0, 1]), couples[:2]) is None


@pytest.mark.parametrize("group", [2, 8, 60])
def test_the_interval_is_as_wide_as_the_mean_varies(group: int) -> None:
    """Of 60 people in groups of so many; how well each is told, and mistaken for others, is the same in all pairs."""
    lines = [Line(f"u{i}", f"want {i // group}", (), "") for i in range(60)]
    asked = attacker.pairings(lines, {x.user for x in lines}, random.Random(0), same_wants=True)
    pairs = [(a.user, b.user) for a, b in asked]
    ends = np.array([[int(u[1:]) for u in pair] for pair in pairs])
    rng, means, widths = np.random.default_rng(1), [], []
    for _ in range(400):
        told, mistaken, couple = rng.normal(size=(3, 60))
        shared = couple[ends.min(1)] * (group == 2)  # of both ways to ask about a couple
        right = (told[ends[:, 0]] - mistaken[ends[:, 1]] + 2 * shared + rng.normal(size=len(ends)) > 0).astype(float)
        low, high = attacker.over_people(right, pairs) or (0, 0)
        means.append(right.mean())
        widths.append((high - low) / 3.92)
    assert np.mean(widths) == pytest.approx(np.std(means), rel=0.1)


def test_the_same_seed_gives_the_same_attack() -> None:
    lines = world(3, honest)
    assert attack(lines, 4) == attack(lines, 4) != attack(lines, 5)


def test_nobody_is_learned_from_and_asked_about() -> None:
    lines = world(4, honest)
    for same in (False, True):
        rng = random.Random(0)
        train, test = attacker.halves(lines, rng, same_wants=same)
        assert not train & test and len(train | test) == 60 and abs(len(train) - len(test)) <= 6
        pairs = attacker.pairings(lines, test, rng, same_wants=same)
        assert all(a.user != b.user and {a.user, b.user} <= test for a, b in pairs)
        assert not same or all(a.wants == b.wants for a, b in pairs)


def test_two_who_want_the_same_stay_in_one_half() -> None:
    lines = [Line(f"u{i}", f"want {i // 2}", ("A.",), "B.") for i in range(20)]
    train, test = attacker.halves(lines, random.Random(1), same_wants=True)
    for i in range(0, 20, 2):
        assert ({f"u{i}", f"u{i + 1}"} <= train) or ({f"u{i}", f"u{i + 1}"} <= test)
    assert len(train) == len(test) == 10


def test_who_wants_different_things_would_be_in_both_halves_and_is_refused() -> None:
    """As if the summaries of one person were of two."""
    lines = [Line(f"u{i}", want, (f"Word{i}.",), f"Says word{i}.") for i in range(20) for want in "ab"]
    assert guess(lines)["people"] == 10
    with pytest.raises(ConfigError, match="'u0' wants different things"):
        guess(lines, same_wants=True)


def test_features_by_hand() -> None:
    """Two people know "cat"; "dog" and "zebra" are known to one each, of three."""
    people = [Bag.of(("cat dog",)), Bag.of(("cat", "zebra cat")), Bag.of(("emu",))]
    likeness = Likeness(people)
    cat, dog, zebra = math.log(4 / 3) + 1, math.log(4 / 2) + 1, math.log(4 / 2) + 1
    assert [likeness.weight(w) for w in ("cat", "dog", "zebra")] == pytest.approx([cat, dog, zebra])
    found = dict(zip(FEATURES, likeness.features(Bag.of(("Cat zebra.",)), people[1]), strict=True))
    twice = (1 + math.log(2)) * cat
    norm = math.sqrt((cat**2 + zebra**2) * (twice**2 + zebra**2))
    assert found["cosine"] == pytest.approx((cat * twice + zebra**2) / norm)
    assert found["nearest"] == pytest.approx(1)  # the second signal, whose order a bag does not see
    assert found["rare_words"] == pytest.approx(zebra) and found["rarest"] == pytest.approx(zebra)
    assert found["pairs_of_words"] == 0 and found["runs_of_three"] == 0
    # Of " cat", "cat ", "at z", "t ze", " zeb", "zebr", "ebra", "bra ": all but "at z" and "t ze".
    assert found["letters"] == pytest.approx(6 / 8)
    run = dict(zip(FEATURES, likeness.features(Bag.of(("a b c d",)), Bag.of(("b c d e", "a", "b"))), strict=True))
    assert run["pairs_of_words"] == pytest.approx(2 / 3) and run["runs_of_three"] == pytest.approx(1 / 2)
    empty = likeness.features(Bag.of(("",)), Bag.of(()))
    assert empty == [0.0] * len(FEATURES)


def test_the_fit_is_the_least_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    d = rng.normal(size=(80, 3)) + np.array([1.0, 0.0, -0.5])

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -d @ w).sum() + 0.5 * 2.0 * w @ w)

    found, plain = fit(d, ridge=2.0), np.zeros(3)
    for _ in range(4000):
        plain += 0.01 * (d.T @ (1 / (1 + np.exp(d @ plain))) - 2.0 * plain)
    assert found == pytest.approx(plain, abs=1e-6)
    for step in np.eye(3) * 1e-3:
        assert loss(found) < loss(found + step) and loss(found) < loss(found - step)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Likes Berlin and asks Anna's cat, but not Rust.", ["Berlin", "Anna", "Rust"]),
        ("Berlin is first. Wants short answers, as I do. Anna!", []),
        ("Likes Short answers: Prefers lists.", []),
        ("Says “Klaus” and (Olga), or O'Neill.", ["Klaus", "Olga", "O'Neill"]),
        ("", []),
    ],
)
def test_names_are_strange_capitals_inside_sentences(text: str, expected: list[str]) -> None:
    assert attacker.names(text, Lexicon.load()) == expected


def test_numbers_runs_and_their_sums_by_hand() -> None:
    lexicon = Lexicon.load()
    assert attacker.digits("Has 3 cats, born in 2019 or ٣.") == ["3", "2019", "٣"]
    assert attacker.digits("Twenty three is no digit.") == []
    assert attacker.number_words("First three, then Twenty-one dogs.", lexicon) == ["three", "twenty", "one"]
    signals = ["The washing machine stopped halfway, and the towels are wet.", "My towels are green."]
    text = "The washing machine stopped halfway and so on; the towels are green."
    assert attacker.runs(text, signals, 4) == ["the washing machine stopped halfway and"]
    assert attacker.runs(text, [*signals, "see: the towels are green"], 4) == [
        "the washing machine stopped halfway and", "the towels are green"]  # fmt: skip
    assert attacker.runs(text, signals, 6) == ["the washing machine stopped halfway and"]
    assert attacker.runs(text, signals, 7) == [] and attacker.runs("", signals, 4) == []
    others = [Line("b", None, (), "Meets Olga and Klaus at 3."), Line("c", None, (), "No.")]
    assert counts([Line("a", None, tuple(signals), text), *others]) == {
        "names": {"many": 2, "texts": 1}, "digits": {"many": 1, "texts": 1}, "number_words": {"many": 0, "texts": 0},
        "runs_4": {"many": 1, "texts": 1}, "runs_6": {"many": 1, "texts": 1},
    }  # fmt: skip


def test_too_few_people_are_refused() -> None:
    lines = world(5, honest, 12)
    with pytest.raises(ConfigError, match="too few people to learn"):
        guess(lines[:2])
    with pytest.raises(ConfigError, match="too few people who want the same, to learn"):
        guess([Line(line.user, line.user, line.signals, line.text) for line in lines], same_wants=True)
    with pytest.raises(ConfigError, match="too few people who want the same, to learn"):
        guess([Line(line.user, None, line.signals, line.text) for line in lines], same_wants=True)


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "popi_training.attacker", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows(lines: Sequence[Line]) -> str:
    return "".join(
        json.dumps({"user": x.user, "wants": x.wants, "signals": x.signals, "text": x.text}) + "\n" for x in lines
    )


def test_the_command_attacks_a_file(tmp_path: Path) -> None:
    lines = [*world(6, leaking), Line("silent", None, ("Nothing.",), " ")]
    path = tmp_path / "in.jsonl"
    path.write_text(rows(lines))
    done = run(path, "--same-wants", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == attack(lines, same_wants=True) and found["texts"] == 60
    assert run(path).stdout.startswith("whose summary it is, of two people: right 0.9")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"user": 3, "signals": [], "text": ""}', "line 1: user is missing"),
        ('{"user": "a", "signals": []}', "line 1: text is missing"),
        ('{"user": "a", "signals": "b", "text": "c"}', "line 1: signals must be a list of texts"),
        ('{"user": "a", "signals": ["b"], "text": "c", "wants": 4}', "line 1: wants must be a text or null"),
        ('{"user": "a", "signals": ["b"], "text": "c"}', "too few people"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(line + "\n")
    monkeypatch.setattr(sys, "argv", ["attacker", str(path)])
    with pytest.raises(SystemExit, match=f"attacker: .*{says}") as refused:
        attacker.main()
    assert "\n" not in str(refused.value)
