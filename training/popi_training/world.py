"""The controlled world of popi-micro: users whose taste is known, and the exact Bayes predictor of what they choose.

Replies show poles of six attributes by marker words. A user's type θ gives each attribute a pole and a weight: one to
three of them ±1 or ±2, the rest 0; how many is drawn evenly, then all types of so many are equally likely (and a part
takes those that are its own, below).
With s(reply) ∈ {−1, 0, 1}⁶ what a reply shows, d = (s(first) − s(second))/2 and u = 2 θ·d:

    pair        2 or 3 attributes (evenly, any set), any poles in the first reply; in the second each is opposite with
                probability OPPOSITE, else the same. Judged always where u ≠ 0, else with probability BOTHERS, or
                another is drawn: P(pair|θ) = q(pair) · judged(u) / Σ q · judged
    comparison  P(first is chosen|pair, θ) = σ(SHARPNESS · u)
    rating      one reply, any 2 or 3 attributes and poles: judged and scored high (0.9, not 0.2) as if compared with
                a reply that is opposite in all of them, d = s(reply)
    statement   names one pole: a wanted one by its weight, or (SLIP) any of the 12: (1 − SLIP) |θ_a|/|θ|₁ + SLIP/12
    target      a pair with u ≠ 0 (ties are none): P(pair|θ) = q(pair) [u ≠ 0]/Σ q [u ≠ 0]. Its chosen reply is that of
                the higher utility, without noise, so that who knows θ scores 1; accuracy counts ties of a rule ½

Kinds are drawn by SHARES. Prompts, frames, markers of a pole, order and length say nothing of θ.

Fixed before any training: who trains (part ``train``) never wants two attributes of a pair in ``apart`` (3 of 15) and
never sees the topics, frames and statements called held out nor, under prompt template j, marker (2a + j) mod 3 of
either pole of attribute a. ``dev`` (to look at while developing) and ``users`` are other users, ``combinations`` are
users who want such a pair, ``phrasings`` users whose signals and targets are made of the held-out wording alone. What
is published is about the users named "0" to "1999" of the last three.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge import prompts
from popi_edge.errors import ConfigError
from popi_edge.signals import Comparison, Rating, Signal, Statement
from popi_training.people import Person, Target
from popi_training.users import LONG_AGO

Type = tuple[int, ...]
"""A user's θ, or what a reply shows: one whole number for each attribute, in order; positive is the first pole."""
Summary = tuple[tuple[int, int], ...]
"""What a summary names, in order: an attribute by number, and its degree, 1 to 3, positive for the first pole."""
Asked = tuple[int, int]
"""A prompt: its template and its topic, by number."""
Values = NDArray[np.float64]
WORLD: Mapping[str, Any] = json.loads(files("popi_training").joinpath("world.json").read_text("utf-8"))
ATTRIBUTES: tuple[str, ...] = tuple(WORLD["attributes"])
APART = tuple((ATTRIBUTES.index(a), ATTRIBUTES.index(b)) for a, b in WORLD["apart"])
SEEDS = {"train": "train", "dev": "dev", **{p: f"test:{p}" for p in ("users", "combinations", "phrasings")}}
"""Part → how its users' names begin; the whole name is the seed, so that no two parts share one."""
MOST, WEIGHTS, SHOWN = 3, (1, 2), (2, 3)
OPPOSITE, BOTHERS, SHARPNESS, SLIP = 0.8, 0.3, 0.6, 0.1
SHARES = {"comparison": 0.8, "rating": 0.1, "statement": 0.1}
SIGNALS, TARGETS = 8, 8
HIGH, LOW = 0.9, 0.2
"""Scores of a rating."""
DEGREES = (0.1, 0.4, 0.9)
"""From which posterior mean on (without its sign) a pole is named, and in which degree."""
UNHEARD = (1, 3, 5)
"""Attributes that an inference model names by words which its generator has never heard, where that is wanted."""
STRESS = (5, 13, 26)
"""How a summary is read: what each degree counts, each pole a twentieth less than the one before it."""


def _signs(kind: str) -> dict[str, tuple[int, int]]:
    return {
        word: (a, 1 - 2 * side)
        for a, poles in enumerate(WORLD["attributes"].values())
        for side, pole in enumerate(poles)
        for word in pole[kind]
    }


MARKERS, SAID = _signs("markers"), _signs("summary")
"""Word → (attribute, +1 or −1): of replies, and of statements and summaries."""
OTHER = {
    word: other
    for first, second in WORLD["attributes"].values()
    for kind in ("summary", "markers")
    for pair in zip(first[kind], second[kind], strict=True)
    for word, other in (pair, pair[::-1])
}


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def mirror(text: str) -> str:
    """The text with every word that shows or names a pole replaced by one of the opposite pole; twice gives it back."""
    return re.sub(r"[a-z]+", lambda m: OTHER.get(m.group(), m.group()), text)


def shown(reply: str) -> Type:
    """The poles that a reply's markers show. Raises ConfigError unless they are of 2 or 3 attributes, one each."""
    found = [MARKERS[w] for w in words(reply) if w in MARKERS]
    at = dict(found)
    if len(at) not in SHOWN or len(at) != len(found):
        raise ConfigError(f"not a reply of the world, 2 or 3 attributes with one marker each: {reply[:60]!r}")
    return tuple(at.get(a, 0) for a in range(len(ATTRIBUTES)))


def view(first: str, second: str) -> Type:
    """d: +1 or −1 where two replies show opposite poles. Raises ConfigError where they show other attributes."""
    one, two = shown(first), shown(second)
    if any((a == 0) != (b == 0) for a, b in zip(one, two, strict=True)):
        raise ConfigError(f"the two replies show different attributes: {first[:60]!r} and {second[:60]!r}")
    return tuple((a - b) // 2 for a, b in zip(one, two, strict=True))


def truth(theta: Type) -> Summary:
    """What is so of a user: the wanted poles, the heaviest first and in a higher degree, of equals in the order of the
    attributes."""
    order = sorted((a for a, w in enumerate(theta) if w), key=lambda a: -abs(theta[a]))
    return tuple((a, theta[a] + (1 if theta[a] > 0 else -1)) for a in order)


def say(summary: Summary, rng: random.Random | None = None, second: Sequence[int] = ()) -> str:
    """A summary in words: the wording drawn, or without ``rng`` the first one, of the attributes ``second`` the other
    word that there is."""
    if not summary:
        return str(prompts.spec()["silence"])
    options = [WORLD["attributes"][ATTRIBUTES[a]][degree < 0]["summary"] for a, degree in summary]
    named = [rng.choice(o) if rng else o[a in second] for o, (a, _) in zip(options, summary, strict=True)]
    named = [f"{word} {WORLD['degrees'][abs(degree) - 1]}" for word, (_, degree) in zip(named, summary, strict=True)]
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    return str(rng.choice(WORLD["summaries"]) if rng else WORLD["summaries"][0]).format(listed)


def read(summary: str) -> Summary:
    """What any text names, in order; an attribute of which both poles are named counts as neither."""
    found: dict[tuple[int, int], int] = {}
    said = words(summary)
    for word, after in itertools.pairwise([*said, ""]):
        if word in SAID:
            found.setdefault(SAID[word], WORLD["degrees"].index(after) + 1 if after in WORLD["degrees"] else 2)
    sides = Counter(a for a, _ in found)
    return tuple((a, side * degree) for (a, side), degree in found.items() if sides[a] == 1)


class Bayes:
    """Exact inference over all T types by enumeration; below 6 ``attributes`` (at least 3) a smaller world, for tests.

    ``types`` [T, A]; ``views`` [V, A]: every d that a pair can show.
    """

    def __init__(self, attributes: int = len(ATTRIBUTES)) -> None:
        sides = sorted({s * w for w in WEIGHTS for s in (1, -1)})
        self.types = np.concatenate([_spread(attributes, k, sides) for k in range(1, MOST + 1)])
        self.views = np.concatenate([_spread(attributes, k, [1, -1]) for k in range(max(SHOWN) + 1)])
        self._row: dict[Type, int] = {tuple(v): i for i, v in enumerate(self.views.tolist())}
        count, apart = (self.types != 0).sum(1), [(self.types[:, p] != 0).all(1) for p in APART if max(p) < attributes]
        natural, held = 1 / np.bincount(count)[count], np.any(apart, axis=0)
        own = {part: natural * (held == (part == "combinations")) for part in SEEDS} | {"any": natural}
        self._priors = {part: np.asarray(p / p.sum(), np.float64) for part, p in own.items()}
        u = 2.0 * self.views @ self.types.T
        self._side = np.sign(u)  # what each type prefers, [V, T]
        size, judged = (self.views != 0).sum(1), np.where(u != 0, 1.0, BOTHERS)
        pairs, rated = np.array([_laws(attributes, m) for m in size.tolist()]).T
        self._differs: Values = pairs @ (u != 0)  # Σ q [u ≠ 0], [T]
        choice = -np.logaddexp(0, -SHARPNESS * u) + np.log(judged)
        wanted = np.stack([np.maximum(self.types, 0), np.maximum(-self.types, 0)], 1).reshape(len(self.types), -1)
        stated = (1 - SLIP) * wanted.T / wanted.sum(1) + SLIP / (2 * attributes)  # [first poles, second poles; T]
        self._loglik = np.concatenate(
            [choice - np.log(pairs @ judged), choice - np.log(rated @ judged), np.log(stated)]
        )  # of everything that can be seen, less what is the same for every type, [2V + 2A, T]

    def prior(self, part: str = "users") -> Values:
        """P(θ) [T] among a part's users; ``any``: among all, whatever is held out. Raises ConfigError."""
        if part not in self._priors:
            raise ConfigError(f"no part {part!r} of the world; there are {', '.join(self._priors)}")
        return self._priors[part]

    def posterior(self, signals: Sequence[Signal], part: str = "users") -> Values:
        """P(θ | signals) [T] from the signals' texts alone, in whatever order. Raises ConfigError for a text that the
        world cannot have made."""
        log = self._loglik[sorted(map(self._seen, signals))].sum(0)
        p = self.prior(part) * np.exp(log - log.max())
        return np.asarray(p / p.sum(), np.float64)

    def posteriors(self, signals: Sequence[Signal], part: str = "any") -> Values:
        """P(θ | the first k signals) for k = 1 to all of them, [signals, T]. Raises ConfigError as ``posterior``."""
        log = self._loglik[[self._seen(s) for s in signals]].cumsum(0)
        p = self.prior(part) * np.exp(log - log.max(1, keepdims=True))
        return np.asarray(p / p.sum(1, keepdims=True), np.float64)

    def _seen(self, signal: Signal) -> int:
        match signal:
            case Comparison(chosen=c, rejected=r):
                return self._index(view(c, r))
            case Rating(response=r, score=s):
                return len(self.views) + self._index(tuple(x if s > 0.5 else -x for x in shown(r)))
            case Statement(text=t) if len(found := [SAID[w] for w in words(t) if w in SAID]) == 1:
                (a, sign), n = found[0], self.types.shape[1]
                return int(2 * len(self.views) + a + n * (sign < 0))
        raise ConfigError(f"signal {signal.id}: this {signal.kind} is none of the world's")

    def _index(self, d: Type) -> int:
        n = self.types.shape[1]
        if any(d[n:]):
            raise ConfigError(f"this world has {n} attributes; a reply shows another")
        return self._row[d[:n]]

    def predict(self, posterior: Values, target: Target) -> float:
        """P(the reply called chosen is the one of higher utility | signals, and that the pair is a target)."""
        side, weight = self._side[self._index(view(target.chosen, target.rejected))], posterior / self._differs
        up, down = float(weight @ (side > 0)), float(weight @ (side < 0))
        return up / (up + down) if up + down else 0.5

    def wanted(self, posterior: Values) -> Values:
        """P(the user wants each pole) [A, 2], first poles in column 0."""
        return np.stack([(self.types > 0).T @ posterior, (self.types < 0).T @ posterior], 1)

    def summaries(self, posteriors: Values) -> list[Summary]:
        """What each of ``posteriors`` [N, T] says in words: every attribute whose mean is large enough, the largest
        first, of equals in the order of the attributes."""
        means = (posteriors @ self.types).round(9)
        degrees = (np.sign(means) * np.digitize(abs(means), DEGREES)).astype(int).tolist()
        order = np.argsort(-abs(means), axis=1, kind="stable").tolist()
        return [tuple((a, each[a]) for a in some if each[a]) for some, each in zip(order, degrees, strict=True)]


@functools.cache
def bayes() -> Bayes:
    """The world itself, made once."""
    return Bayes()


def _spread(attributes: int, k: int, values: Sequence[int]) -> NDArray[np.int64]:
    """Every vector with ``k`` entries among ``values`` and the rest 0, [n, attributes]."""
    rows = np.zeros((math.comb(attributes, k) * len(values) ** k, attributes), np.int64)
    each = itertools.product(itertools.combinations(range(attributes), k), itertools.product(values, repeat=k))
    for row, (at, entries) in zip(rows, each, strict=True):
        row[list(at)] = entries
    return rows


def _laws(attributes: int, m: int) -> tuple[float, float]:
    """q of one d with ``m`` entries other than 0: of pairs, and of rated replies."""
    pair = sum(
        math.comb(attributes - m, n - m) / math.comb(attributes, n) * (1 - OPPOSITE) ** (n - m) for n in SHOWN if n >= m
    ) * (OPPOSITE / 2) ** m / len(SHOWN)  # fmt: skip
    return pair, (m in SHOWN) / math.comb(attributes, m) / 2**m / len(SHOWN)


def stress(summary: Summary) -> tuple[int, ...]:
    """How much a summary taken at its word makes of each attribute, positive for the first pole, [A]."""
    made = [0] * len(ATTRIBUTES)
    for place, (a, degree) in enumerate(summary):
        made[a] = (20 - place) * STRESS[abs(degree) - 1] * (1 if degree > 0 else -1)
    return tuple(made)


def follow(summary: Summary, target: Target) -> int:
    """A summary taken at its word: positive where the chosen reply has more of what is wanted, negative the other."""
    d = view(target.chosen, target.rejected)
    return sum(a * b for a, b in zip(d, stress(summary), strict=True))


def judged(summary: Summary, targets: Sequence[Target]) -> tuple[Target, ...]:
    """The pairs as somebody would choose who wants just what a summary says; without those that it does not decide."""
    found = [(t, follow(summary, t)) for t in targets]
    return tuple(t if sign > 0 else Target(t.prompt, t.rejected, t.chosen) for t, sign in found if sign)


class _Teller:
    """Draws what one user judges: everything follows from the generator it is given."""

    def __init__(self, theta: Type, part: str) -> None:
        self.theta, self.heldout = theta, part == "phrasings"
        key = "heldout_" if self.heldout else ""
        self.topics, self.frames, self.statements = (WORLD[key + k] for k in ("topics", "frames", "statements"))

    def prompt(self, asked: Asked) -> str:
        return str(WORLD["prompts"][asked[0]].format(self.topics[asked[1]]))

    def replies(self, rng: random.Random, asked: Asked, bothers: float, opposite: float) -> tuple[int, str, str]:
        """(u, first reply, second); ``bothers``: how likely a pair with u = 0 is taken."""
        while True:
            at = rng.sample(range(len(ATTRIBUTES)), rng.choice(SHOWN))
            first = {a: rng.choice((1, -1)) for a in at}
            second = {a: -s if rng.random() < opposite else s for a, s in first.items()}
            u = sum(self.theta[a] * (first[a] - second[a]) for a in at)
            if u or rng.random() < bothers:
                return u, self._reply(rng, asked[0], first), self._reply(rng, asked[0], second)

    def _reply(self, rng: random.Random, template: int, poles: Mapping[int, int]) -> str:
        chosen = []
        for a in rng.sample(sorted(poles), len(poles)):
            markers = WORLD["attributes"][ATTRIBUTES[a]][poles[a] < 0]["markers"]
            apart = (2 * a + template) % len(markers)
            chosen.append(rng.choice([m for i, m in enumerate(markers) if (i == apart) == self.heldout]))
        return str(rng.choice(self.frames[str(len(poles))]).format(*chosen))

    def signal(self, rng: random.Random, asked: Asked, id_: str) -> Signal:
        """One signal, about the prompt unless it is a statement."""
        common = {"id": id_, "at": LONG_AGO, "source": "world"}
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "statement":
            a, sign = rng.choice(range(len(ATTRIBUTES))), rng.choice((1, -1))
            if rng.random() >= SLIP:
                a = rng.choices(range(len(ATTRIBUTES)), list(map(abs, self.theta)))[0]
                sign = 1 if self.theta[a] > 0 else -1
            said = WORLD["attributes"][ATTRIBUTES[a]][sign < 0]["summary"]
            return Statement(rng.choice(self.statements).format(rng.choice(said)), **common)
        u, first, second = self.replies(rng, asked, BOTHERS, OPPOSITE if kind == "comparison" else 1.0)
        likes = rng.random() < 1 / (1 + math.exp(-SHARPNESS * u))
        if kind == "rating":
            return Rating(self.prompt(asked), first, HIGH if likes else LOW, **common)
        return Comparison(self.prompt(asked), *((first, second) if likes else (second, first)), **common)

    def target(self, rng: random.Random, asked: Asked) -> Target:
        u, first, second = self.replies(rng, asked, 0.0, OPPOSITE)
        return Target(self.prompt(asked), *((first, second) if u > 0 else (second, first)))


def opposite(person: Person) -> Person:
    """Who wants the opposite in everything: the same pairs chosen the other way round, the opposite pole stated."""
    signals: list[Signal] = []
    for s in person.signals:
        match s:
            case Comparison():
                signals.append(replace(s, chosen=s.rejected, rejected=s.chosen))
            case Rating():
                signals.append(replace(s, score=HIGH if s.score == LOW else LOW))
            case Statement():
                signals.append(replace(s, text=mirror(s.text)))
    targets = tuple(Target(t.prompt, t.rejected, t.chosen) for t in person.targets)
    return Person(f"{person.id}:opposite", tuple(signals), targets, mirror(person.oracle))


def tally(signals: Sequence[Signal], key: Mapping[str, Any]) -> Counter[Any]:
    """How often more each word, or what ``key`` makes of it, was liked than not."""
    counts: Counter[Any] = Counter()
    for s in signals:
        for name in ("chosen", "rejected", "response", "text"):
            sign = -1 if name == "rejected" or (isinstance(s, Rating) and s.score < 0.5) else 1
            for word in words(getattr(s, name, "")):
                if word in key:
                    counts[key[word]] += sign
    return counts


def counted(signals: Sequence[Signal]) -> Summary:
    """What somebody would say who only counts: the poles that were liked more often than not, at most three, the most
    often liked first. That is not the best that can be said, but everything in it is there to be read."""
    poles = tally(signals, MARKERS | SAID)
    lead = {a: poles[a, 1] - poles[a, -1] for a in range(len(ATTRIBUTES))}
    liked = sorted((a for a, n in lead.items() if n), key=lambda a: (-abs(lead[a]), a))[:MOST]
    return tuple((a, 2 if lead[a] > 0 else -2) for a in liked)


@functools.cache
def _types(part: str) -> tuple[list[Type], list[float]]:
    return [tuple(t) for t in bayes().types.tolist()], bayes().prior(part).cumsum().tolist()


def draw(name: str, part: str, signals: int | None = None, *, theta: Type | None = None) -> tuple[Person, Type]:
    """The user called ``name`` of a part, with 8 targets, and their θ, which is drawn unless it is given.

    They have 1 to 8 signals (evenly), or the first ``signals`` of their 8, about other prompts than the targets. Raises
    ConfigError for a part or number that there is not.
    """
    if part not in SEEDS or not 0 <= (signals or 0) <= SIGNALS:
        raise ConfigError(f"a user is of {', '.join(SEEDS)} and has up to {SIGNALS} signals, not {part!r}, {signals}")
    id_ = f"{SEEDS[part]}:{name}"
    rng = random.Random(f"world:{id_}")
    types, cumulative = _types(part)
    drawn = rng.choices(types, cum_weights=cumulative)[0]
    theta = drawn if theta is None else theta
    count = rng.randint(1, SIGNALS)
    teller = _Teller(theta, part)
    asked = list(itertools.product(range(len(WORLD["prompts"])), range(len(teller.topics))))
    asked = rng.sample(asked, TARGETS + SIGNALS)
    targets = tuple(teller.target(rng, a) for a in asked[:TARGETS])
    about = asked[TARGETS : TARGETS + (count if signals is None else signals)]
    told = tuple(teller.signal(rng, a, f"{id_}-{i}") for i, a in enumerate(about))
    return Person(id_, told, targets, say(truth(theta))), theta


def vocabulary_texts() -> list[str]:
    """Texts that hold every word of the prompt contract and of the world, in every place that it can stand in."""

    def strings(value: Any) -> list[str]:
        if isinstance(value, str):
            return [re.sub(r"{\w+}", "", value)]
        return [s for v in value.values() for s in strings(v)]

    topics, frames, statements = ([WORLD[k], WORLD["heldout_" + k]] for k in ("topics", "frames", "statements"))
    marker = itertools.cycle(MARKERS)
    texts = [
        *(prompt.format(t) for prompt in WORLD["prompts"] for some in topics for t in some),
        *(f.format(*(next(marker) for _ in range(3))) for some in frames * 3 for k in some for f in some[k]),
        *(s.format(word) for some in statements for s in some for word in SAID),
        *(s.format(word) for s in WORLD["summaries"] for word in SAID),
        say(((0, 3), (1, -2), (2, 1))),
    ]
    contract = {k: v for k, v in prompts.spec().items() if k not in ("version", "limits", "evidence")}
    rated = ["system", "user", "assistant", "reply 2 out of 10", "reply 9 out of 10"]
    return [*strings(contract), *rated, *texts, *map(prompts.quote, texts)]
