"""Attribute inference: what a text tells of somebody's age group, job, place and health, beyond what most people are.

The attacker is a ridge classifier that compares people by the texts they have (sentences of a summary, or signals): how
alike any text of the one is to any of the other, by words and word pairs weighted by how rare they are. How strict it
is, and how much more two texts count that are nearly the same, is chosen by leaving out one of the people it learns
from. It is asked about people whose attributes it has not learnt, in five parts; the two who want the same are in one
part. The guess is the class that most of those it learnt from have.

It knows words, NOT what they mean, and it has seen a few hundred people, not millions.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.tells_personas import ATTRIBUTES
from popi_edge.summarize import SENTENCE_END
from popi_training import probe
from popi_training.evaluate.metrics import difference, entry

Matrix = NDArray[np.float64]
Kernels = dict[int, Matrix]
PARTS = 5
POWERS = (1, 3)
STRICT = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
READS = ("text", "signals", "told")


def texts(row: Mapping[str, Any], read: str) -> list[str]:
    """What the attacker has of a person: the sentences of the summary (``text``), the raw ``signals``, or, as a
    control, the summary and the facts behind it as if it had ``told`` them."""
    if read == "signals":
        return list(row["signals"])
    return SENTENCE_END.split(row["text"]) + (list(row["facts"]) if read == "told" else [])


def kernels(people: Sequence[Sequence[str]]) -> Kernels:
    """power → how alike people are [n, n]: Σ cos(t, u)^power over the texts t of the one and u of the other, over the
    root of what each has with itself; cosines of words and word pairs weighted by inverse document frequency."""
    bags = [set(probe.features(t)) for some in people for t in some]
    whose = np.array([i for i, some in enumerate(people) for _ in some])
    seen = Counter(f for bag in bags for f in bag)
    kept = {f: i for i, f in enumerate(sorted(f for f, n in seen.items() if n > 1))}
    x = np.zeros((len(bags), len(kept)), np.float32)
    for row, bag in enumerate(bags):
        for f in bag & kept.keys():
            x[row, kept[f]] = math.log((1 + len(bags)) / (1 + seen[f])) + 1
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    alike = x @ x.T
    owns = np.zeros((len(people), len(bags)), np.float32)
    owns[whose, np.arange(len(bags))] = 1
    out = {}
    for power in POWERS:
        k = (owns @ alike**power @ owns.T).astype(np.float64)
        size = np.sqrt(np.maximum(np.diag(k), 1e-9))
        out[power] = k / size[:, None] / size
    return out


def ridge(
    found: Kernels, known: Sequence[int], labels: Sequence[str], asked: Sequence[int]
) -> tuple[list[str], Matrix]:
    """(classes, scores [asked, classes]) by one ridge regression a class, around the mean, on the ``known`` people,
    whose labels these are; power and strictness are those under which most of them are right when left out."""
    classes = sorted(set(labels))
    y = np.array([[float(c == label) for c in classes] for label in labels])
    middle, truth = y.mean(0), y.argmax(1)
    best, scores = -1.0, np.zeros((len(asked), len(classes)))
    for k in found.values():
        values, vectors = np.linalg.eigh(k[np.ix_(known, known)])
        values, inside = values.clip(0), vectors.T @ (y - middle)
        for strict in STRICT:
            shrink = values / (values + strict)
            lever = ((vectors**2) * shrink).sum(1, keepdims=True)
            without = (vectors @ (shrink[:, None] * inside) - lever * (y - middle)) / np.maximum(1 - lever, 1e-9)
            right = float((np.round(without + middle, 6).argmax(1) == truth).mean())
            if right >= best:
                best = right
                scores = k[np.ix_(asked, known)] @ (vectors @ (inside / (values + strict)[:, None])) + middle
    return classes, np.asarray(np.round(scores, 6))


def parts(couples: Sequence[str], seed: int) -> list[list[int]]:
    """Indices of the people asked about in each part; a couple is in one."""
    names = sorted(set(couples))
    random.Random(f"parts:{seed}").shuffle(names)
    where = {name: i % PARTS for i, name in enumerate(names)}
    return [[i for i, c in enumerate(couples) if where[c] == part] for part in range(PARTS)]


def most(labels: Sequence[str]) -> str:
    """The class that most have."""
    counts = Counter(labels)
    return max(sorted(counts), key=lambda c: counts[c])


def guesses(found: Kernels, labels: Sequence[str], couples: Sequence[str], seed: int) -> tuple[Matrix, Matrix]:
    """1 where the attacker is right [n], and where the guess is [n]."""
    attack, guess = np.zeros(len(labels)), np.zeros(len(labels))
    for asked in parts(couples, seed):
        known = sorted(set(range(len(labels))) - set(asked))
        taught = [labels[i] for i in known]
        classes, scores = ridge(found, known, taught, asked)
        for i, row in zip(asked, scores, strict=True):
            attack[i] = float(classes[int(row.argmax())] == labels[i])
            guess[i] = float(most(taught) == labels[i])
    return attack, guess


def couple(row: Mapping[str, Any]) -> str:
    return str(row["user"]).rpartition(":")[0]


def attributes(rows: Sequence[Mapping[str, Any]], read: str, seed: int = 0) -> dict[str, Any]:
    """By attribute and over all of them: the accuracy of the attacker that reads this (one of ``READS``), that of the
    guess, and the difference; intervals over couples."""
    alike = kernels([texts(row, read) for row in rows])
    names = [couple(row) for row in rows]
    found = {a: guesses(alike, [row["classes"][a] for row in rows], names, seed) for a in ATTRIBUTES}
    found["all"] = tuple(np.mean([f[k] for f in found.values()], axis=0) for k in (0, 1))
    return {
        name: {
            "attack": entry(attack, names, seed), "guess": entry(guess, names, seed),
            "extra": difference(attack - guess, names, seed=seed),
        }
        for name, (attack, guess) in found.items()
    }  # fmt: skip


def trained(rows: Sequence[Mapping[str, Any]], asked: Sequence[Sequence[str]]) -> Matrix:
    """Classes guessed [asked, attributes], by an attacker who learnt from the summaries of all of ``rows``; he has all
    sentences of the texts of each."""
    people = [texts(row, "text") for row in rows]
    people += [[s for t in some for s in SENTENCE_END.split(t)] for some in asked]
    alike, known = kernels(people), range(len(rows))
    out = []
    for a in ATTRIBUTES:
        classes, scores = ridge(alike, known, [row["classes"][a] for row in rows], range(len(rows), len(people)))
        out.append([classes[int(s.argmax())] for s in scores])
    return np.array(out).T
