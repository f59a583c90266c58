"""How well a generator follows each pole's own sentence: sign(m) accuracy and contrast by dimension of the corpus.

    python -m popi_training.follow OUT.json [--pairs N] [--bundle B]

The k-th pair of a dimension is scored under the k-th phrasing (in turn) of both of its poles. For each of the two
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
from pathlib import Path
from typing import Any

from popi_edge import config, prompts
from popi_edge.errors import PopiError
from popi_training.corpus import Corpus, Pair, load
from popi_training.evaluate.journal import write_whole
from popi_training.evaluate.run import Pair as Model
from popi_training.evaluate.run import open_pair

CAN_FOLLOW = 0.6
"""Contrast from which a dimension counts as one that the generator can follow; it is marked below that."""


def half_ties(value: float) -> float:
    return 1.0 if value > 0 else 0.5 if value == 0 else 0.0


def margins(model: Model, corpus: Corpus, pair: Pair, turn: int) -> dict[str, Any]:
    """log p(a) − log p(b) of a pair's replies a, b (in order of pole id): bare, and under either pole's sentence."""
    tokenizer, prompt = model.engine.tokenizer, corpus.prompts[pair.prompt]
    a, b = sorted(pair.replies)
    replies = [prompts.reply_ids(tokenizer, pair.replies[p]) for p in (a, b)]
    poles = corpus.dimensions[pair.dimension].poles
    said = {p: poles[p].phrasings["summary"] for p in (a, b)}
    texts = {"bare": None, a: said[a][turn % len(said[a])], b: said[b][turn % len(said[b])]}
    out: dict[str, Any] = {"pair": pair.id, "dimension": pair.dimension, "poles": [a, b], "turn": turn}
    for name, text in texts.items():
        up, down = model.engine.score(
            prompts.generate_ids(tokenizer, prompt, summary=text), replies, adapter=model.generate_adapter
        )
        out[name] = up.total - down.total
    return out


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
    parser.add_argument("--pairs", type=int, default=10_000, help="at most so many pairs of a dimension")
    parser.add_argument("--bundle")
    options = parser.parse_args()
    try:
        corpus, model = load(), open_pair(options.bundle, None, config.load())
        turns: dict[str, int] = defaultdict(int)
        todo = []
        for pair in corpus.pairs:
            if turns[pair.dimension] < options.pairs:
                todo.append((turns[pair.dimension], pair))
                turns[pair.dimension] += 1
        todo.sort(key=lambda t: t[0])
        rows, began = [], time.monotonic()
        for done, (turn, pair) in enumerate(todo, 1):
            rows.append(margins(model, corpus, pair, turn))
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
    return {
        text: round(mean * max(0.0, 1 - inside / len(found[text]) / spread), 3) for text, mean in sorted(means.items())
    }


def _write(out: Path, model: Model, corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    moved = phrasings(rows, corpus) if len(rows) > 8 * len(corpus.dimensions) else {}
    result = {"model": model.model, "dimensions": table(rows), "phrasings": moved}
    write_whole(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
