"""The controlled world: its Bayes predictor against plain enumeration and drawn users, its splits, its words."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import re
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from popi_edge import prompts
from popi_edge.errors import ConfigError
from popi_edge.signals import Comparison, Post, Rating, Signal, Statement
from popi_edge.vocabulary import Lexicon
from popi_training import micro, world, world_ceiling
from popi_training.evaluate.metrics import Values, wins
from popi_training.people import Person, Target

PARTS = ("train", "dev", "users", "combinations", "phrasings")
SMALL = 4
"""Attributes of the world that is small enough for plain loops: two of its pairs are held out."""
POLE = {w: (a, 1 - 2 * side) for a, poles in enumerate(world.WORLD["attributes"].values())
        for side, pole in enumerate(poles) for w in pole["markers"]}  # fmt: skip


@functools.cache
def many() -> list[tuple[Person, world.Type]]:
    return [world.draw(str(i), "dev") for i in range(5_000)]


def by_hand(reply: str) -> dict[int, int]:
    return dict(POLE[w] for w in reply.split() if w in POLE)


def utility(theta: tuple[int, ...], reply: str) -> int:
    return sum(theta[a] * s for a, s in by_hand(reply).items())


def same_way(u: float) -> float:
    return 1 / (1 + math.exp(-world.SHARPNESS * u))


class Plain:
    """The generator's story told in loops, over outcomes rather than differences: what ``Bayes`` must agree with."""

    def __init__(self, n: int) -> None:
        thetas = [t for t in itertools.product((-2, -1, 0, 1, 2), repeat=n) if 1 <= n - t.count(0) <= 3]
        sizes = Counter(t.count(0) for t in thetas)
        self.n, self.any = n, {t: 1 / 3 / sizes[t.count(0)] for t in thetas}
        self.outcomes: list[tuple[dict[int, int], dict[int, int], float]] = []
        for k in (2, 3):
            sets = list(itertools.combinations(range(n), k))
            for at, signs, flips in itertools.product(
                sets, itertools.product((1, -1), repeat=k), itertools.product((1, -1), repeat=k)
            ):
                q = 0.5 / len(sets) / 2**k * math.prod(world.OPPOSITE if f < 0 else 1 - world.OPPOSITE for f in flips)
                first = dict(zip(at, signs, strict=True))
                self.outcomes.append((first, {a: s * f for (a, s), f in zip(first.items(), flips, strict=True)}, q))
        self.rated = []
        for k in (2, 3):
            sets = list(itertools.combinations(range(n), k))
            for at, signs in itertools.product(sets, itertools.product((1, -1), repeat=k)):
                self.rated.append((dict(zip(at, signs, strict=True)), 0.5 / len(sets) / 2**k))

    @staticmethod
    def gap(theta: tuple[int, ...], first: dict[int, int], second: dict[int, int]) -> int:
        return sum(theta[a] * (first[a] - second[a]) for a in first)

    def likelihood(self, theta: tuple[int, ...], signal: Signal) -> float:
        match signal:
            case Comparison(chosen=c, rejected=r):
                seen, total = 0.0, 0.0
                for first, second, q in self.outcomes:
                    u = self.gap(theta, first, second)
                    taken = q * (1.0 if u else world.BOTHERS)
                    total += taken
                    if (first, second) == (by_hand(c), by_hand(r)):
                        seen += taken * same_way(u)
                    if (second, first) == (by_hand(c), by_hand(r)):
                        seen += taken * same_way(-u)
                return seen / total
            case Rating(response=text, score=score):
                seen, total = 0.0, 0.0
                for reply, q in self.rated:
                    u = 2 * sum(theta[a] * s for a, s in reply.items())
                    total += q * (1.0 if u else world.BOTHERS)
                    if reply == by_hand(text):
                        seen += q * (1.0 if u else world.BOTHERS) * same_way(u if score > 0.5 else -u)
                return seen / total
        words = [w.strip(".") for w in signal.texts()[0].split()]
        poles = list(itertools.product(range(len(world.ATTRIBUTES)), (0, 1)))
        names = [world.WORLD["attributes"][world.ATTRIBUTES[a]][side]["summary"] for a, side in poles]
        ((a, side),) = [p for p, said in zip(poles, names, strict=True) if set(said) & set(words)]
        wanted = theta[a] * (1 - 2 * side)
        return (1 - world.SLIP) * max(wanted, 0) / sum(map(abs, theta)) + world.SLIP / (2 * self.n)

    def posterior(self, signals: list[Signal], part: str) -> dict[tuple[int, ...], float]:
        held = [(world.ATTRIBUTES.index(a), world.ATTRIBUTES.index(b)) for a, b in world.WORLD["apart"]]
        out = {}
        for theta, p in self.any.items():
            apart = any(max(pair) < self.n and theta[pair[0]] and theta[pair[1]] for pair in held)
            if part == "any" or apart == (part == "combinations"):
                out[theta] = p * math.prod(self.likelihood(theta, s) for s in signals)
        total = sum(out.values())
        return {t: p / total for t, p in out.items()}

    def chance(self, theta: tuple[int, ...]) -> float:
        """P(a drawn pair is no tie)."""
        return sum(q for first, second, q in self.outcomes if self.gap(theta, first, second))


def some_signals(rng: random.Random, n: int, count: int) -> list[Signal]:
    """Texts of the world about its first ``n`` attributes, whoever would choose so."""
    out: list[Signal] = []
    names = list(world.WORLD["attributes"].values())[:n]

    def reply(poles: dict[int, int]) -> str:
        return " ".join(["so", *(rng.choice(names[a][s < 0]["markers"]) for a, s in poles.items())])

    for i in range(count):
        at = rng.sample(range(n), rng.choice((2, 3)))
        first, second = ({a: rng.choice((1, -1)) for a in at} for _ in range(2))
        made = (
            Comparison("Help me with tea.", reply(first), reply(second), id=str(i)),
            Rating("Help me with tea.", reply(first), rng.choice((0.9, 0.2)), id=str(i)),
            Statement(f"I want {rng.choice(rng.choice(rng.choice(names))['summary'])} replies.", id=str(i)),
        )
        out.append(rng.choices(made, (3, 1, 1))[0])
    return out


@pytest.mark.parametrize("part", ["users", "combinations", "any"])
def test_the_posterior_is_that_of_plain_enumeration(part: str) -> None:
    rng, bayes, plain = random.Random(part), world.Bayes(SMALL), Plain(SMALL)
    chance = {t: plain.chance(t) for t in plain.any}
    for count in (0, 4):
        signals = some_signals(rng, SMALL, count)
        own, naive = bayes.posterior(signals, part), plain.posterior(signals, part)
        assert own.sum() == pytest.approx(1) and len(own) == len(plain.any)
        for theta, p in zip(map(tuple, bayes.types.tolist()), own, strict=True):
            assert p == pytest.approx(naive.get(theta, 0.0), rel=1e-9, abs=1e-15)
        first = [sum(p for t, p in naive.items() if t[a] > 0) for a in range(SMALL)]
        assert bayes.wanted(own)[:, 0] == pytest.approx(first)
        for pair in (s for s in some_signals(rng, SMALL, 12) if isinstance(s, Comparison)):
            better, worse = by_hand(pair.chosen), by_hand(pair.rejected)
            up = sum(p / chance[t] for t, p in naive.items() if plain.gap(t, better, worse) > 0)
            down = sum(p / chance[t] for t, p in naive.items() if plain.gap(t, better, worse) < 0)
            expected = up / (up + down) if up + down else 0.5
            target = Target(pair.prompt, pair.chosen, pair.rejected)
            assert bayes.predict(own, target) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_what_a_posterior_says_is_its_means_in_words_the_largest_first(count: int) -> None:
    bayes, plain = world.Bayes(SMALL), Plain(SMALL)
    for seed in range(6):
        signals = some_signals(random.Random(seed), SMALL, count)
        naive = plain.posterior(signals, "any")
        means = [round(sum(p * t[a] for t, p in naive.items()), 9) for a in range(SMALL)]
        (said,) = bayes.summaries(bayes.posteriors(signals)[-1:] if count else bayes.prior("any")[None])
        assert [a for a, _ in said] == sorted(
            (a for a, mean in enumerate(means) if abs(mean) >= 0.1), key=lambda a: -abs(means[a])
        )
        for a, degree in said:
            assert (degree > 0) == (means[a] > 0) and abs(degree) == sum(abs(means[a]) >= at for at in (0.1, 0.4, 0.9))


def test_what_is_said_predicts_nearly_as_well_as_all_that_is_known() -> None:
    law, said, known, three = world.bayes(), list[float](), list[float](), list[float]()
    for person, _ in many()[:600]:
        (words,) = law.summaries(law.posteriors(person.signals)[-1:])
        posterior = law.posterior(person.signals, "dev")
        first = tuple((a, 2 if degree > 0 else -2) for a, degree in words[:3])
        for t in person.targets:
            said.append(world.follow(words, t))
            three.append(world.follow(first, t))
            known.append(round(law.predict(posterior, t) - 0.5, 9))
    share = [(float(wins(v).mean()) - 0.5) / (float(wins(known).mean()) - 0.5) for v in (said, three)]
    assert 0.96 < share[0] < 1 and share[1] < share[0] - 0.02


def test_pairs_are_judged_as_by_somebody_who_wants_just_what_is_said() -> None:
    decided = 0
    for person, _ in many()[:100]:
        summary = ((0, 3), (1, -1), (4, 2))
        for t in (judged := world.judged(summary, person.targets)):
            assert world.follow(summary, t) > 0 and {t.chosen, t.rejected} in (
                [{o.chosen, o.rejected} for o in person.targets]
            )
        assert len(judged) == sum(bool(world.follow(summary, t)) for t in person.targets)
        decided += len(judged)
    assert 100 < decided < 800


def test_what_it_predicts_happens_as_often_as_it_says_and_no_rule_beats_it() -> None:
    bayes, predicted, happened = world.bayes(), [], []
    wanted, truth = [], []
    right = defaultdict[str, list[float]](list)
    for person, theta in many():
        posterior = bayes.posterior(person.signals, "dev")
        wanted.append(bayes.wanted(posterior)[0, 0])
        truth.append(float(theta[0] > 0))
        target = person.targets[0]  # one each, so that what is counted is independent
        p = bayes.predict(posterior, target)
        first = target.chosen < target.rejected  # an order that says nothing
        predicted.append(p if first else 1 - p)
        happened.append(float(first))
        right["bayes"].append(round(p - 0.5, 9))
        right["longer"].append(len(target.chosen) - len(target.rejected))
        right["marker"].append(world_ceiling.majority(person.signals, target, {w: w for w in POLE}))
        right["pole"].append(world_ceiling.majority(person.signals, target, world.MARKERS | world.SAID))
        right["last"].append(world_ceiling.majority(person.signals[-1:], target, world.MARKERS | world.SAID))
    calibrated(np.array(predicted), np.array(happened))
    calibrated(np.array(wanted), np.array(truth))
    score = {k: float(wins(v).mean()) for k, v in right.items()}
    assert score["bayes"] > score["pole"] + 0.01 > score["marker"] + 0.06 and score["bayes"] > score["last"] + 0.06
    assert score["bayes"] == pytest.approx(np.maximum(predicted, 1 - np.array(predicted)).mean(), abs=0.02)
    assert score["longer"] == pytest.approx(0.5, abs=0.025)


def calibrated(p: Values, happened: Values) -> None:
    """Tenths of what was predicted against what happened, to three and a half standard errors."""
    for group in np.array_split(np.argsort(p), 10):
        error = np.sqrt((p[group] * (1 - p[group])).sum()) / len(group)
        assert abs(p[group].mean() - happened[group].mean()) < 3.5 * error + 1e-9


def test_the_order_of_signals_says_nothing() -> None:
    for person, _ in many()[:50]:
        signals = list(person.signals)
        random.Random(1).shuffle(signals)
        assert (world.bayes().posterior(signals) == world.bayes().posterior(person.signals)).all()


def mirrored(signal: Signal) -> Signal:
    texts: Any = {k: world.mirror(v) for k, v in signal.content().items() if isinstance(v, str)}
    return replace(signal, **texts)


def test_opposite_signals_give_the_opposite_answer() -> None:
    bayes = world.bayes()
    for person, _ in many()[:100]:
        own = bayes.posterior(person.signals)
        other = bayes.posterior([mirrored(s) for s in person.signals])
        assert bayes.wanted(own) == pytest.approx(bayes.wanted(other)[:, ::-1])
        for t in person.targets:
            turned = Target(t.prompt, world.mirror(t.chosen), world.mirror(t.rejected))
            assert bayes.predict(own, t) == pytest.approx(bayes.predict(other, turned))
            assert bayes.predict(own, Target("x", t.rejected, t.chosen)) == pytest.approx(1 - bayes.predict(own, t))
        best, turned = map(world.say, bayes.summaries(np.array([own, other])))
        assert world.mirror(best) == turned and world.mirror(turned) == best


def test_targets_go_to_the_higher_utility_and_the_oracle_knows_all_of_them() -> None:
    for person, theta in many()[:1000]:
        assert person.targets and 1 <= len(person.signals) <= 8
        wants = world.read(person.oracle)
        assert {a: d - (1 if d > 0 else -1) for a, d in wants} == {a: w for a, w in enumerate(theta) if w}
        assert [abs(theta[a]) for a, _ in wants] == sorted(filter(None, map(abs, theta)), reverse=True)
        for t in person.targets:
            assert utility(theta, t.chosen) > utility(theta, t.rejected)
            assert by_hand(t.chosen).keys() == by_hand(t.rejected).keys()
            assert world.follow(wants, t) > 0 and 5 <= len(t.chosen.split()) <= 7
        asked = [s.prompt for s in person.signals if isinstance(s, Comparison | Rating)]
        asked += [t.prompt for t in person.targets]
        assert len(asked) == len(set(asked))


def test_no_marker_and_no_frame_tells_who_wins() -> None:
    """Of 36 markers and of frames, how often the one reply that has it is the chosen one: half, within its error."""
    won: defaultdict[str, list[int]] = defaultdict(list)
    for person, _ in many():
        for t in person.targets:
            one, two = set(t.chosen.split()), set(t.rejected.split())
            for word in one ^ two:
                won[word].append(word in one)
    assert set(POLE) < set(won) and len(won) == len(POLE) + 15
    far = [(np.mean(v) - 0.5) * 2 * math.sqrt(len(v)) for v in won.values()]
    assert max(map(abs, far)) < 5 and np.mean(np.square(far)) < 2.5  # a user's eight targets go together


def combinations(theta: tuple[int, ...]) -> set[tuple[str, str]]:
    wanted = [a for a, weight in zip(world.ATTRIBUTES, theta, strict=True) if weight]
    return set(itertools.permutations(wanted, 2))


def test_what_is_held_out_is_never_trained_on() -> None:
    data, apart = world.WORLD, {tuple(p) for p in world.WORLD["apart"]}
    assert len(apart) / math.comb(6, 2) == pytest.approx(0.2, abs=0.02)
    for part in PARTS:
        key = "heldout_" if part == "phrasings" else ""
        frames = [f for k in ("2", "3") for f in data[key + "frames"][k]]
        forms = [re.sub(r"{}", r"(\\S+)", f) for f in frames]
        for i in range(100):
            person, theta = world.draw(str(i), part)
            assert bool(combinations(theta) & apart) == (part == "combinations")
            pairs = [(s.prompt, t) for s in person.signals if isinstance(s, Comparison | Rating) for t in s.texts()[1:]]
            for prompt, reply in [*pairs, *((t.prompt, r) for t in person.targets for r in (t.chosen, t.rejected))]:
                (template,) = [j for j, f in enumerate(data["prompts"]) if prompt.startswith(f.split("{")[0])]
                assert prompt in map(data["prompts"][template].format, data[key + "topics"])
                assert any(re.fullmatch(f, reply) for f in forms)
                for word in set(reply.split()) & set(POLE):
                    a, sign = POLE[word]
                    place = data["attributes"][world.ATTRIBUTES[a]][sign < 0]["markers"].index(word)
                    assert (place == (2 * a + template) % 3) == (part == "phrasings")
            said = [s.text for s in person.signals if isinstance(s, Statement)]
            assert all(any(t.startswith(f.split("{")[0]) for f in data[key + "statements"]) for t in said)
    lists = [data[k] for k in ("topics", "heldout_topics")] + [data[f"{h}frames"]["2"] for h in ("", "heldout_")]
    assert not set(lists[0]) & set(lists[1]) and not set(lists[2]) & set(lists[3])


def test_a_user_follows_from_name_and_part_alone() -> None:
    random.seed(3)
    again = [world.draw(str(i), "dev") for i in reversed(range(50))][::-1]
    assert again == many()[:50]
    eight, theta = world.draw("7", "users", 8)
    assert world.draw("7", "users", 3) == (replace(eight, signals=eight.signals[:3]), theta)
    everybody = [world.draw(str(i), part, 8)[0] for part in PARTS for i in range(100)]
    assert len({p.id for p in everybody}) == len({tuple(t.chosen for t in p.targets) for p in everybody}) == 500
    assert {p.id.split(":")[0] for p in everybody if not p.id.startswith("test:")} == {"train", "dev"}


def test_signals_are_drawn_as_often_and_as_noisily_as_it_says() -> None:
    kinds: Counter[str] = Counter()
    right, ties, slips = defaultdict[int, list[bool]](list), [], []
    chance = dict(zip(map(tuple, world.bayes().types.tolist()), world.bayes()._differs.tolist(), strict=True))
    for person, theta in many():
        for s in person.signals:
            kinds[s.kind] += 1
            match s:
                case Comparison(chosen=c, rejected=r):
                    u = utility(theta, c) - utility(theta, r)
                    right[abs(u)].append(u > 0)
                    tie = world.BOTHERS * (1 - chance[theta])
                    ties.append((u == 0) - tie / (tie + chance[theta]))
                case Rating(response=r, score=score) if (u := 2 * utility(theta, r)):
                    right[abs(u)].append((u > 0) == (score > 0.5))
                case Statement(text=t):
                    ((a, degree),) = world.read(t)
                    slips.append(theta[a] * degree <= 0)
    for kind, share in world.SHARES.items():
        assert kinds[kind] / kinds.total() == pytest.approx(share, abs=0.01)
    assert {2, 4, 6} <= set(right) - {0}
    for u, won in right.items():
        if u:
            assert np.mean(won) == pytest.approx(same_way(u), abs=1.8 / math.sqrt(len(won)))
    assert np.mean(ties) == pytest.approx(0, abs=0.015)
    assert np.mean(slips) == pytest.approx(world.SLIP * (1 - 2 / 12), abs=0.02)  # one to three of 12 are wanted


def test_users_are_drawn_by_the_prior_of_their_part() -> None:
    for part in PARTS:
        prior = zip(world.bayes().types.tolist(), world.bayes().prior(part).tolist(), strict=True)
        drawn = [t for _, t in many()] if part == "dev" else [world.draw(str(i), part, 0)[1] for i in range(400)]
        expected = np.sum([p * np.eye(4)[6 - t.count(0)] for t, p in prior], axis=0)  # of one, two and three wants
        share = np.mean([np.eye(4)[6 - t.count(0)] for t in drawn], axis=0)
        assert share == pytest.approx(expected, abs=2 / math.sqrt(len(drawn)))


def test_summaries_are_read_as_they_are_said_and_are_of_the_lexicon() -> None:
    lexicon, rng = Lexicon.load(), random.Random(0)
    degrees = [d * side for d in (1, 2, 3) for side in (1, -1)]
    for _ in range(500):
        summary = tuple((a, rng.choice(degrees)) for a in rng.sample(range(6), rng.randint(0, 6)))
        for text in (world.say(summary), world.say(summary, rng)):
            assert world.read(text) == summary and lexicon.accepts(text)
    assert world.say(((1, 3), (0, 2), (3, -1))) == "Wants replies warm always, brief often and serious sometimes."
    assert world.say(()) == prompts.spec()["silence"]
    said = world.read("Likes friendly always, long, short and loose talk; warm.")
    assert said == ((1, 3), (4, -2)) and world.read("") == ()


def test_a_pole_counts_by_its_degree_and_of_equals_the_earlier_counts_more() -> None:
    assert world.stress(((1, 3), (0, -2), (3, 2))) == (-13 * 19, 26 * 20, 0, 13 * 18, 0, 0)
    pair = Target("x", "so dear we fully", "so sir we quickly")  # warm and long, formal and brief
    assert world.follow(((1, 2), (0, 2)), pair) > 0 > world.follow(((0, 2), (1, 2)), pair)
    assert world.follow(((0, 1), (1, 2)), pair) > 0 > world.follow(((1, 1), (0, 2)), pair)


class Words:
    """What ``prompts`` asks of a tokenizer here, over a real one made of the world's own texts."""

    def __init__(self) -> None:
        tokens, merges, _ = micro.vocabulary(world.vocabulary_texts(), 2_000)
        pairs = [(m.split(" ")[0], m.split(" ")[1]) for m in merges]
        self._own = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, pairs))
        self._own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def encode(self, text: str) -> list[int]:
        return list(self._own.encode(text).ids)


def test_a_vocabulary_of_a_few_hundred_words_covers_every_prompt() -> None:
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known = {w for text in world.vocabulary_texts() for w, _ in cut.pre_tokenize_str(text)}
    assert len(known) < 400
    tokenizer: Any = Words()
    for person in [world.draw(str(i), part, 8)[0] for part in PARTS for i in range(30)]:
        signals = [prompts.signal_text(signal, tokenizer) for signal in person.signals]
        texts = [content for _, content in prompts.infer_messages(signals, person.oracle)]
        assert len(tokenizer.encode(texts[1])) < 450  # of eight signals: words are tokens
        texts += [prompts.raw_system(person.signals, tokenizer), person.oracle]
        texts += [prompts.generate_system(person.oracle), prompts.generate_system(None)]
        texts += [text for t in person.targets for text in (t.prompt, t.chosen)]
        assert {w for t in texts for w, _ in cut.pre_tokenize_str(t)} <= known


def test_what_is_not_of_the_world_is_refused() -> None:
    bayes, good = world.bayes(), Comparison("Help me with tea.", "so dear we quickly", "so sir we fully")
    for signal in (
        Post("I want warm replies."), Statement("I want warm and brief replies."), Statement("I want tea."),
        replace(good, rejected="so sir we gravely"), replace(good, chosen="so dear we go"),
        replace(good, chosen="so dear sir quickly"), Rating("Help me with tea.", "so dear we", 0.9),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            bayes.posterior([good, signal])
    for part, count in (("test", None), ("users", 9), ("users", -1)):
        with pytest.raises(ConfigError):
            world.draw("0", part, count)
    with pytest.raises(ConfigError, match="part"):
        bayes.posterior([good], "test")
    with pytest.raises(ConfigError, match="attributes"):
        world.Bayes(3).posterior([Rating("Help me with tea.", "so haha we quickly", 0.9)])


def test_the_opposite_person_is_the_mirror_of_everything() -> None:
    for i in range(40):
        person, theta = world.draw(str(i), "users")
        other = world.opposite(person)
        assert world.read(other.oracle) == world.truth(tuple(-w for w in theta)) and other.signals != person.signals
        back = world.opposite(other)
        assert (back.signals, back.targets, back.oracle) == (person.signals, person.targets, person.oracle)
        own, theirs = (world.bayes().posterior(p.signals) for p in (person, other))
        for a, b in zip(person.targets, other.targets, strict=True):
            assert world.bayes().predict(own, a) == pytest.approx(world.bayes().predict(theirs, b), abs=1e-9)


def test_the_command_measures_every_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["world", "--users", "25", "--json"])
    world_ceiling.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["part"], r["signals"]) for r in rows] == list(itertools.product(PARTS[2:], (1, 2, 4, 8)))
    for row in rows:
        accuracy = {k: v["accuracy"] for k, v in row["conditions"].items()}
        assert accuracy["type"] == accuracy["oracle_summary"] == 1 and 0.7 < accuracy["noisy_type"] < 0.95
        assert row["conditions"]["bayes"]["low"] < accuracy["bayes"] < row["conditions"]["bayes"]["high"]
    bayes, own = world.bayes(), []
    for person in [world.draw(str(i), "users", 8)[0] for i in range(25)]:
        posterior = bayes.posterior(person.signals)
        own += [bayes.predict(posterior, t) > 0.5 for t in person.targets]
    assert rows[3]["conditions"]["bayes"]["accuracy"] == pytest.approx(np.mean(own), abs=0.01)  # but for ties
