"""Users for measuring, made from what training never saw: each set holds out one thing.

``prompts``        signals and targets from the held-out prompts, in the training phrasings
``phrasings``      signals said in the held-out phrasings (statements, posts, profiles, wishes); held-out prompts too
``users``          new users whose signals are training pairs; the targets are of the held-out prompts
``combinations``   the same, of two dimensions that no training user has together
``dimensions``     the four dimensions left out of training
``kind-KIND``      users of one pole, four signals of one kind, on held-out and development prompts;
``signals-N``      the same with N comparisons (from 14 on some pairs come twice)

Users come in pairs that are opposite in everything, on one target pair: so "the longer reply wins" is right for half.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from popi_edge.errors import ConfigError
from popi_training import corpus as corpora
from popi_training import splits
from popi_training.corpus import Pair
from popi_training.evaluate.data import Row
from popi_training.users import KINDS, Material, Mix, User, Want, draw, mirror
from popi_training.warm import FOLLOW, read_follow

SETS = ("prompts", "phrasings", "users", "combinations", "dimensions")
DEFAULT_ROWS, MOST_ROWS = 200, 100_000
MIX = Mix(noise=0.05, silent=0.0, change=0.0, cancel=0.0)
SAID = {"statement": 0.4, "post": 0.25, "profile": 0.2, "conversation": 0.15}


def build(folder: Path, part: str, rows: int, seed: int) -> tuple[list[Row], str]:
    """``rows`` rows of a set (an even number) and a hash of them. Raises ConfigError for a set that does not exist, or
    that the corpus has too little for."""
    material, mix, combinations = source(folder, part)
    asked = source(folder, "prompts")[0] if part in ("users", "combinations") else material
    _complete(folder, part, material, asked, mix, combinations)
    follow = read_follow(folder / FOLLOW)
    out: list[Row] = []
    for k in range((rows + 1) // 2):
        out += _mirrored(f"{part}:{seed}:{k}", material, asked, mix, combinations, follow)
    blob = json.dumps([{**asdict(r), "signals": [s.content_hash() for s in r.signals]} for r in out])
    return out, hashlib.sha256(blob.encode()).hexdigest()


def source(folder: Path, part: str) -> tuple[Material, Mix, Sequence[frozenset[str]]]:
    """What the users of a set are drawn from, how, and (of that set alone) the combinations that they must have."""
    corpus, split = corpora.load(folder), splits.read(folder / splits.FILE.name)
    trained = [d for d in corpus.dimensions if d not in split.dimensions]
    kind, _, value = part.partition("-")
    if part in ("users", "combinations"):
        material = Material(corpus, pairs=lambda p: p.prompt not in split.dev_prompts, dimensions=trained, set_="held")
        held = sorted(split.combinations, key=sorted) if part == "combinations" else []
        return material, MIX, held
    if part == "dimensions":
        material = Material(corpus, dimensions=sorted(split.dimensions), set_="held")
        return material, replace(MIX, wants=(0.7, 0.3)), []
    heldout = corpora.load(folder, heldout=True)
    if kind in ("kind", "signals"):  # sixteen signals need more pairs: those for development, not trained on either
        dev = [p for p in corpus.pairs if p.prompt in split.dev_prompts]
        heldout.pairs += dev
        heldout.prompts |= {p.prompt: corpus.prompts[p.prompt] for p in dev}
    words = heldout if part == "phrasings" else corpus
    material = Material(heldout, dimensions=trained, phrasings=words, facts=corpus, set_="held")
    if part == "prompts":
        return material, MIX, []
    if part == "phrasings":
        return material, replace(MIX, kinds=SAID, noise=0.0), []
    if kind == "kind" and value in KINDS:
        four = replace(MIX, wants=(1.0,), signals=(0.0, 0.0, 0.0, 1.0), kinds={value: 1.0}, distractors=0, noise=0)
        return material, four, []
    if kind == "signals" and value.isdecimal() and 1 <= int(value) <= 16:
        weights = (*(0.0 for _ in range(int(value) - 1)), 1.0)
        mix = replace(MIX, wants=(1.0,), signals=weights, kinds={"comparison": 1.0}, distractors=0, most=16, least=1)
        return material, mix, []
    raise ConfigError(f"there is no set {part!r}; there are {', '.join(SETS)}, kind-KIND and signals-N (N up to 16)")


def _complete(
    folder: Path, part: str, material: Material, asked: Material, mix: Mix, combinations: Sequence[frozenset[str]]
) -> None:
    """Raises ConfigError where the corpus lacks something that the users of a set or their targets are made of."""
    dimensions = sorted(set().union(*combinations)) if part == "combinations" else material.dimensions
    targets = {p.prompt for d in dimensions for p in asked.pairs.get(d, ())}
    lacking = "" if dimensions else "any pair" if part != "combinations" else "held-out combinations"
    for d in dimensions:
        prompts = {p.prompt for p in material.pairs.get(d, ())}
        if d not in asked.pairs:
            lacking = f"held-out pairs of {d}"
        elif any(prompts <= {target} for target in targets):
            lacking = f"pairs of {d} about another prompt than the target's"
    if material.lacks_facts(mix):
        lacking = "held-out facts of each voice"
    if material.lacks_reactions(mix):
        lacking = "held-out pleased reactions"
    if lacking:
        raise ConfigError(f"{folder}: the corpus has too little for the set {part}: it lacks {lacking}")


def _mirrored(
    name: str, material: Material, asked: Material, mix: Mix, combinations: Sequence[frozenset[str]],
    follow: dict[str, float],
) -> list[Row]:  # fmt: skip
    """Two opposite users, their signals of ``material``, on one pair of replies of ``asked``."""
    rng = random.Random(f"row:{name}")
    if combinations:
        dimensions = sorted(rng.choice(combinations))
    else:
        n = 1 + rng.choices(range(len(mix.wants)), list(mix.wants))[0]
        dimensions = rng.sample(material.dimensions, min(n, len(material.dimensions)))
    wants = [Want(d, rng.choice(sorted(material.words.dimensions[d].poles))) for d in dimensions]
    target = rng.choice(asked.pairs[rng.choice(dimensions)])
    rows = []
    for side, chosen in (("one", wants), ("other", list(mirror(wants, material)))):
        user = draw(f"{name}:{side}", material, mix, wants=chosen, avoid=[target.prompt])
        rows.append(_row(name, side, user, chosen, target, asked, follow))
    return rows


def _row(
    name: str, side: str, user: User, wants: list[Want], target: Pair, material: Material, follow: dict[str, float]
) -> Row:
    pole = next(w.pole for w in wants if w.dimension == target.dimension)
    other = next(p for p in target.replies if p != pole)
    return Row(
        f"{name}:{side}", side, material.corpus.prompts[target.prompt], target.replies[pole], target.replies[other],
        user.signals, None, oracle(wants, material, follow), oracle(mirror(wants, material), material, follow),
        block=name, mirror=f"{name}:{'other' if side == 'one' else 'one'}",
    )  # fmt: skip


def oracle(wants: Sequence[Want], material: Material, follow: dict[str, float]) -> str:
    """The sentences of somebody who knows: of each pole the training phrasing that the base was seen to follow best."""
    said = []
    for want in wants:
        texts = material.words.dimensions[want.dimension].poles[want.pole].phrasings["summary"]
        said.append(max(texts, key=lambda t: (follow.get(t, 0.0), t)))
    return " ".join(said)
