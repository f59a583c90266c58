"""People made from the corpus: what they want, the signals that show it, and what a good summary says.

A user wants one to four poles. Their signals are of every kind, some wrong (noise), some overtaken by later ones (a
change of mind), some cancelling out, and some are facts about a person that are no preference (distractors).
Everything is drawn from a named generator, so that a user is the same whatever was drawn before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from popi_edge import prompts
from popi_edge.errors import ConfigError
from popi_edge.signals import Comparison, Conversation, Edit, Message, Post, Profile, Rating, Signal, Statement
from popi_training.corpus import Corpus, Pair

LONG_AGO = "1970-01-01T00:00:00Z"
TRIES = 10_000
KINDS = ("comparison", "rating", "edit", "statement", "post", "profile", "conversation")
VOICES: Mapping[str, type[Statement] | type[Post] | type[Profile]] = {
    "statement": Statement, "post": Post, "profile": Profile,
}  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """How users are drawn: shares are weights, the rest are probabilities.

    ``wants``: weights of one, two, three, four poles. ``signals``: weights of one to three signals for each pole.
    ``noise``: a judgement the wrong way round; ``change``: a first pole overtaken by its opposite; ``cancel``: a pole
    as often for as against, of which nothing is to be said; ``distractors``: users with facts among their signals;
    ``silent``: users with facts alone, of whom nothing can be said. ``most`` and ``least`` bound the signals that
    show something.
    """

    wants: tuple[float, ...] = (0.45, 0.3, 0.15, 0.1)
    signals: tuple[float, ...] = (0.45, 0.35, 0.2)
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {
            "comparison": 0.55, "rating": 0.1, "edit": 0.08, "statement": 0.08, "post": 0.08, "profile": 0.05,
            "conversation": 0.06,
        }
    )
    noise: float = 0.05
    change: float = 0.06
    cancel: float = 0.03
    distractors: float = 0.25
    silent: float = 0.08
    most: int = 8
    least: int = 2


@dataclass(frozen=True)
class Want:
    """One pole of one dimension."""

    dimension: str
    pole: str


@dataclass(frozen=True)
class User:
    """``wants`` in order of weight (most signals first); ``signals`` in order of time; ``upto[i]`` what can be said
    after the first i + 1 signals. A user of whom nothing can be said has no wants."""

    id: str
    wants: tuple[Want, ...]
    signals: tuple[Signal, ...]
    upto: tuple[tuple[Want, ...], ...]


class Material:
    """What users are drawn from: pairs by dimension, phrasings by pole, facts and reactions."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        pairs: Callable[[Pair], bool] = lambda _: True,
        dimensions: Sequence[str] | None = None,
        phrasings: Corpus | None = None,
        facts: Corpus | None = None,
        set_: str = "train",
    ) -> None:
        """``phrasings`` and ``facts`` (with reactions) come from ``corpus`` too unless others are given."""
        self.corpus = corpus
        self.pairs: dict[str, list[Pair]] = {}
        for pair in corpus.pairs:
            if pairs(pair) and (dimensions is None or pair.dimension in dimensions):
                self.pairs.setdefault(pair.dimension, []).append(pair)
        self.dimensions = sorted(self.pairs)
        self.words = phrasings or corpus
        self.facts = (facts or corpus).facts.get(set_, {})
        self.reactions = (facts or corpus).reactions.get(set_, {})

    def lacks_facts(self, mix: Mix) -> bool:
        """Whether people drawn so may have facts, of which some voice has none."""
        return bool(mix.silent or mix.distractors) and not {"statement", "post", "profile"} <= set(self.facts)

    def lacks_reactions(self, mix: Mix) -> bool:
        """Whether people drawn so may have conversations, for which there is no pleased reaction."""
        return bool(mix.kinds.get("conversation")) and not self.reactions.get("pleased")

    def opposite(self, want: Want) -> Want:
        """The other pole of a dimension of two poles."""
        poles = self.words.dimensions[want.dimension].poles
        return Want(want.dimension, next(p for p in sorted(poles) if p != want.pole))

    def phrasing(self, want: Want, voice: str, rng: random.Random) -> str:
        """One way of saying a pole in a voice (summary, statement, post, profile)."""
        return rng.choice(self.words.dimensions[want.dimension].poles[want.pole].phrasings[voice])


def weighted(rng: random.Random, weights: Mapping[str, float]) -> str:
    """A key drawn by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def draw(
    name: str, material: Material, mix: Mix, *, allows: Callable[[list[str]], bool] = lambda _: True,
    wants: Sequence[Want] | None = None, avoid: Sequence[str] = (),
) -> User:  # fmt: skip
    """The user called ``name``: with the given ``wants``, or with some that ``allows`` accepts together.

    ``avoid``: prompts (ids) that none of the signals may be about.
    """
    rng = random.Random(f"user:{name}")
    if wants is None and rng.random() < mix.silent:
        return _silent(name, material, rng)
    chosen = list(wants) if wants is not None else draw_wants(rng, material, mix, allows)
    plan: list[tuple[Want, Want | None]] = []  # (what the signal shows, what can be said because of it)
    for want in chosen:
        n = 1 + rng.choices(range(len(mix.signals)), list(mix.signals))[0]
        plan += [(want, want)] * n
    rng.shuffle(plan)
    if wants is None and rng.random() < mix.change:
        plan = _changed(plan, chosen[0], material)
    elif wants is None and len(chosen) > 1 and rng.random() < mix.cancel / (1 - mix.change):
        plan = _cancelled(plan, chosen.pop(), material)
    plan = plan[: mix.most]
    if len(plan) < mix.least:
        plan = plan * 2
    teller = _Teller(name, material, mix, rng, avoid)
    said: list[Want] = []
    signals: list[Signal] = []
    upto: list[tuple[Want, ...]] = []
    distract = rng.random() < mix.distractors
    for shown, telling in plan:
        if distract and rng.random() < 0.4:
            signals.append(teller.fact())
            upto.append(_ranked(said, plan))
        flip = telling is not None and plan.count((shown, telling)) >= 3 and rng.random() < mix.noise
        signals.append(teller.tell(material.opposite(shown) if flip else shown, clear=not flip))
        if telling is not None:
            said = [w for w in said if w.dimension != telling.dimension] + [telling]
        upto.append(_ranked(said, plan))
    return User(name, upto[-1], tuple(signals), tuple(upto))


def draw_wants(
    rng: random.Random, material: Material, mix: Mix, allows: Callable[[list[str]], bool]
) -> list[Want]:
    """One to four poles that ``allows`` accepts together."""
    n = 1 + rng.choices(range(len(mix.wants)), list(mix.wants))[0]
    for _ in range(TRIES):
        dimensions = rng.sample(material.dimensions, min(n, len(material.dimensions)))
        if allows(dimensions):
            return [Want(d, rng.choice(sorted(material.words.dimensions[d].poles))) for d in dimensions]
    raise ConfigError(f"users.wants: no {n} of the dimensions {', '.join(material.dimensions)} may stand together")


def _changed(
    plan: list[tuple[Want, Want | None]], want: Want, material: Material
) -> list[tuple[Want, Want | None]]:
    """The opposite of ``want`` comes first, ``want`` itself at least twice afterwards."""
    old = material.opposite(want)
    rest = [p for p in plan if p[0] != want]
    return [(old, old), *rest[: len(rest) // 2], (want, want), *rest[len(rest) // 2 :], (want, want)]


def _cancelled(
    plan: list[tuple[Want, Want | None]], want: Want, material: Material
) -> list[tuple[Want, Want | None]]:
    """As often for ``want`` as against it: nothing is said on that."""
    rest = [p for p in plan if p[0] != want]
    both: list[tuple[Want, Want | None]] = [(want, None), (material.opposite(want), None)]
    return [*both[:1], *rest, *both[1:]]


def _ranked(said: Sequence[Want], plan: Sequence[tuple[Want, Want | None]]) -> tuple[Want, ...]:
    weight = {w: sum(t == w for _, t in plan) for w in said}
    return tuple(sorted(said, key=lambda w: (-weight[w], w.dimension)))


def _silent(name: str, material: Material, rng: random.Random) -> User:
    """Facts only."""
    teller = _Teller(name, material, Mix(), rng, ())
    signals = [teller.fact() for _ in range(rng.randint(2, 4))]
    return User(name, (), tuple(signals), tuple(() for _ in signals))


class _Teller:
    """Turns what is to be shown into signals; no prompt twice while others are left."""

    def __init__(
        self, name: str, material: Material, mix: Mix, rng: random.Random, avoid: Sequence[str]
    ) -> None:
        self.name, self.material, self.mix, self.rng = name, material, mix, rng
        self.used: set[str] = set(avoid)
        self.avoid = set(avoid)
        self.count = 0

    def _common(self) -> dict[str, str]:
        self.count += 1
        return {"id": f"{self.name}-{self.count}", "at": LONG_AGO, "source": "corpus"}

    def _pair(self, dimension: str) -> Pair:
        pairs = self.material.pairs[dimension]
        fresh = [p for p in pairs if p.prompt not in self.used] or [p for p in pairs if p.prompt not in self.avoid]
        pair = self.rng.choice(fresh)
        self.used.add(pair.prompt)
        return pair

    def tell(self, want: Want, *, clear: bool = True) -> Signal:
        """One signal that shows ``want``; not ``clear``: only a judgement, as a slip would be."""
        rng, material = self.rng, self.material
        kinds = self.mix.kinds if clear else {k: v for k, v in self.mix.kinds.items() if v and k in KINDS[:2]}
        kind, common = weighted(rng, kinds or {"comparison": 1.0}), self._common()
        if kind in ("statement", "post", "profile"):
            text = material.phrasing(want, kind, rng)
            return VOICES[kind](text, **common)
        pair = self._pair(want.dimension)
        prompt = material.corpus.prompts[pair.prompt]
        own, other = pair.replies[want.pole], pair.replies[material.opposite(want).pole]
        match kind:
            case "comparison":
                return Comparison(prompt, own, other, **common)
            case "rating":
                if rng.random() < 0.6:
                    return Rating(prompt, own, rng.choice([0.8, 0.9, 1.0]), **common)
                return Rating(prompt, other, rng.choice([0.0, 0.1, 0.2, 0.3]), **common)
            case "edit":
                return Edit(prompt, other, own, **common)
        if rng.random() < 0.5:
            turns = [("user", prompt), ("assistant", own), ("user", rng.choice(material.reactions["pleased"]))]
        else:
            wish = material.phrasing(want, "statement", rng)
            turns = [("user", prompt), ("assistant", other), ("user", wish)]
        return Conversation(tuple(Message(role, text) for role, text in turns), **common)

    def fact(self) -> Signal:
        """One signal that is no preference."""
        voice = self.rng.choice(["statement", "post", "profile"])
        text = self.rng.choice(self.material.facts[voice])
        return VOICES[voice](text, **self._common())


def say(
    wants: Sequence[Want], material: Material, rng: random.Random, tokenizer: object, limit: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """A summary of the wants in order, one phrasing each, within ``limit`` tokens; the last are left out if need be.

    ``weights``: phrasing → weight, 0 for never; the others count 1. No wants: the contract's word for nothing to say.
    """
    most = limit or prompts.spec()["limits"]["summary_tokens"]
    if not wants:
        return str(prompts.spec()["silence"])
    for attempt in range(40):
        kept = wants[: max(1, len(wants) - attempt // 20)]
        texts = []
        for want in kept:
            phrasings = material.words.dimensions[want.dimension].poles[want.pole].phrasings["summary"]
            options = [o for o in phrasings if (weights or {}).get(o, 1.0) > 0] or phrasings
            if attempt >= 10:  # many wants need short phrasings
                options = sorted(options, key=len)[: max(1, len(options) // 2)]
            texts.append(rng.choices(options, [(weights or {}).get(o, 1.0) for o in options])[0])
        text = " ".join(texts)
        if len(tokenizer.encode(text)) <= most:  # type: ignore[attr-defined]
            return text
    return texts[0]


def mirror(wants: Sequence[Want], material: Material) -> tuple[Want, ...]:
    """The wants of somebody who is the opposite in everything."""
    return tuple(map(material.opposite, wants))
