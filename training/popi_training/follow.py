"""How well a generator follows each pole's own sentence: sign(m) accuracy and contrast by dimension of the corpus.

    python -m popi_training.follow OUT.json [--wide] [--pairs N] [--every] [--bundle B]

The k-th pair of a dimension is scored under the k-th phrasing (in turn) of both of its poles, with ``--every`` each
pair under all phrasings. ``--wide``: of the dimensions that the wide part of the corpus adds. For each of the two
replies as the wanted one: m under its own pole's sentence > 0 (accuracy) and > m under the opposite pole's (contrast,
DESIGN's evaluation); ties count half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from popi_edge import config, prompts
from popi_edge.cli.common import at_least, launch
from popi_edge.errors import PopiError
from popi_training.corpus import Corpus, Pair, load
from popi_training.evaluate.journal import write_whole
from popi_training.evaluate.run import Pair as Model
from popi_training.evaluate.run import open_pair

CAN_FOLLOW = 0.6
"""Contrast from which a dimension counts as one that the generator can follow; it is marked below that."""


def half_ties(value: float) -> float:
    return 1.0 if value > 0 else 0.5 if value == 0 else 0.0


def margins(model: Model, corpus: Corpus, pair: Pair, turns: Sequence[int]) -> Iterator[dict[str, Any]]:
    """log p(a) − log p(b) of a pair's replies a, b (in order of pole id), for every turn: bare, and under either pole's
    sentence."""
    tokenizer, prompt = model.engine.tokenizer, corpus.prompts[pair.prompt]
    a, b = sorted(pair.replies)
    replies = [prompts.reply_ids(tokenizer, pair.replies[p]) for p in (a, b)]
    poles = corpus.dimensions[pair.dimension].poles
    said = {p: poles[p].phrasings["summary"] for p in (a, b)}

    def under(text: str | None) -> float:
        context = prompts.generate_ids(tokenizer, prompt, summary=text)
        up, down = model.engine.score(context, replies, adapter=model.generate_adapter)
        return up.total - down.total

    bare = under(None)
    for turn in turns:
        out: dict[str, Any] = {"pair": pair.id, "dimension": pair.dimension, "poles": [a, b], "turn": turn}
        yield out | {"bare": bare} | {p: under(texts[turn % len(texts)]) for p, texts in said.items()}


def work(corpus: Corpus, most: int, every: bool, among: Collection[str]) -> list[tuple[Pair, Sequence[int]]]:
    """The pairs to score of the dimensions ``among``, at most so many of each, and the turns of each, the first pairs
    of all dimensions first."""
    count: dict[str, int] = defaultdict(int)
    todo = []
    for pair in corpus.pairs:
        k, poles = count[pair.dimension], corpus.dimensions[pair.dimension].poles.values()
        if k < most and pair.dimension in among:
            turns = range(max(len(pole.phrasings["summary"]) for pole in poles)) if every else (k,)
            todo.append((k, pair, turns))
            count[pair.dimension] += 1
    return [(pair, turns) for _, pair, turns in sorted(todo, key=lambda t: t[0])]


def table(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By dimension: pairs, accuracy and contrast over both replies of each pair, and each pole's accuracy."""
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in rows:
        a, b = row["poles"]
        contrast = half_ties(row[a] - row[b])
        found[row["dimension"]].append((half_ties(row[a] - row["bare"]), half_ties(row["bare"] - row[b]), contrast))
    out = {}
    for name, values in sorted(found.items()):
        first, second, contrast = (sum(v[i] for v in values) / len(values) for i in range(3))
        out[name] = {
            "pairs": len(values), "accuracy": (first + second) / 2, "contrast": contrast,
            "first_pole": first, "second_pole": second, "follows": contrast >= CAN_FOLLOW,
        }  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=at_least(1), default=10_000, help="at most so many pairs of a dimension")
    parser.add_argument("--wide", action="store_true", help="the dimensions that only the wide part has")
    parser.add_argument("--every", action="store_true", help="each pair under all phrasings of its poles")
    parser.add_argument("--bundle")
    options = parser.parse_args()
    try:
        corpus, model = load(wide=options.wide), open_pair(options.bundle, None, config.load())
        among = corpus.dimensions.keys() - (load().dimensions if options.wide else ())
        todo = work(corpus, options.pairs, options.every, among)
        rows, began = list[dict[str, Any]](), time.monotonic()
        for done, (pair, turns) in enumerate(todo, 1):
            rows += margins(model, corpus, pair, turns)
            if done % 56 == 0:
                left = (time.monotonic() - began) / done * (len(todo) - done) / 60
                print(f"{done} of {len(todo)} pairs, {left:.0f} min left", file=sys.stderr, flush=True)
                _write(options.out, model, corpus, rows)
        _write(options.out, model, corpus, rows)
    except (PopiError, OSError) as e:
        sys.exit(f"follow: {e}")
    for name, r in table(rows).items():
        print(f"{name:<18}{r['pairs']:>4} pairs  accuracy {r['accuracy']:.2f}  contrast {r['contrast']:.2f}")


def phrasings(rows: list[dict[str, Any]], corpus: Corpus) -> dict[str, float]:
    """How many nats each summary phrasing moves m towards its pole: the mean over its pairs, shrunk towards 0 by as
    much as chance alone would spread such means (empirical Bayes, one variance for all)."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        a, b = row["poles"]
        for pole, moved in ((a, row[a] - row["bare"]), (b, row["bare"] - row[b])):
            texts = corpus.dimensions[row["dimension"]].poles[pole].phrasings["summary"]
            found[texts[row["turn"] % len(texts)]].append(moved)
    inside = statistics.mean(statistics.variance(v) for v in found.values() if len(v) > 1)
    means = {text: statistics.mean(v) for text, v in found.items()}
    spread = statistics.pvariance(means.values())
    kept = {text: max(0.0, 1 - inside / len(found[text]) / spread) if spread else 0.0 for text in means}
    return {text: round(mean * kept[text], 3) for text, mean in sorted(means.items())}


def _write(out: Path, model: Model, corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    moved = phrasings(rows, corpus) if len(rows) > 8 * len({r["dimension"] for r in rows}) else {}
    result = {"model": model.model, "dimensions": table(rows), "phrasings": moved}
    write_whole(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    launch(main)
