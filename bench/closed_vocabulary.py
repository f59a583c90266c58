"""What the closed vocabulary costs: ``popi eval``'s summary condition with it and without, on the same rows.

    python -m bench.closed_vocabulary [--bundle popi-smol] [--limit 120] [--seed 0] [--work FOLDER] [--out FOLDER]

The rows are those of ``popi eval --data training/corpus --format corpus --set prompts``, and so are the functions: all
that differs is whether summaries are decoded under the mask. Other conditions do not depend on it, so they are not run.
Writes FOLDER/closed_prompts.jsonl and open_prompts.jsonl, listings that ``popi_training.compare`` reads too, and
closed_vocabulary.json with both conditions, the paired difference (open less closed; intervals over prompts) and the
summaries beside each other. With --work finished units are kept, and a run that was ended goes on.

The generator was trained on summaries of the closed vocabulary alone, and the inference model too: what a model would
do that never had one is NOT measured.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge import config
from popi_edge.cli.common import launch
from popi_edge.errors import PopiError
from popi_edge.vocabulary import Lexicon
from popi_training import corpus as corpora
from popi_training.cli import Meter
from popi_training.compare import compare
from popi_training.evaluate.conditions import BARE, contexts, draw_donors
from popi_training.evaluate.data import Dataset, load
from popi_training.evaluate.journal import Journal, write_json
from popi_training.evaluate.metrics import Outcome, entry
from popi_training.evaluate.run import Pair, Scores, open_pair, short_margins, summarize_all, write_listing

SIDES = ("closed", "open")
SHOWN = 10
Listing = list[dict[str, Any]]


def listings(data: Dataset, model: Pair, seed: int, work: Path | None, meter: Meter) -> dict[str, Listing]:
    """By side, one line a row: the summary, and the margins under one's own and under the opposite's."""
    pairs = {"closed": model, "open": replace(model, constraint=None)}
    journals = {s: Journal(work / s if work else None, pairs[s].settings(data, seed)) for s in SIDES}
    made: dict[str, list[dict[str, Any]]] = {s: [] for s in SIDES}
    for row in data.rows:  # one behind the other, so that the prompt is still in the engine's cache
        for side in SIDES:
            made[side] += summarize_all([row], pairs[side], journals[side], profile=False, advance=lambda *_: None)
        meter("summaries", 1, len(data.rows))
    scores, donors = Scores(data.rows, model, journals["closed"]), draw_donors(data.rows, seed)
    fronts = {
        side: [contexts("summary", i, data.rows, donors, [m["text"] for m in made[side]], False)
               for i in range(len(data.rows))]
        for side in SIDES
    }  # fmt: skip
    for i in range(len(data.rows)):
        for context in (BARE, *(c for front in fronts.values() for c in front[i])):
            scores.job(i, context)
    scores.compute(meter)
    for journal in journals.values():
        journal.close()
    found = {side: scores.outcome(front) for side, front in fronts.items()}
    return {
        side: [
            {"row": r.id, "persona": r.user_key, "profile": False,
             "cluster": hashlib.sha256(r.cluster.encode()).hexdigest()[:12],
             **{n: m[n] for n in ("status", "tokens", "text")},
             "margins": {"none": [0.0, 0.0],
                         "summary": short_margins(float(found[side].own[i]), float(found[side].other[i]))}}
            for i, (r, m) in enumerate(zip(data.rows, made[side], strict=True))
        ]
        for side in SIDES
    }  # fmt: skip


def described(lines: dict[str, Listing], clusters: list[str], seed: int) -> dict[str, Any]:
    """Both sides, the difference, and what the summaries are like."""
    lexicon, out = Lexicon.load(), dict[str, Any]()
    for side, some in lines.items():
        margins = np.array([x["margins"]["summary"] for x in some])
        found = Outcome(margins[:, 0], margins[:, 1], np.zeros(len(some)))
        texts = [x["text"] for x in some if x["text"]]
        out[side] = {
            **entry(found.right, clusters, seed), **entry(found.beats, clusters, seed, "contrast"),
            "summaries": len(texts), "distinct": len(set(texts)), "lawful": sum(map(lexicon.accepts, texts)),
            "tokens": sum(x["tokens"] for x in some) / max(1, len(texts)),
            "outside": sorted({p.text for t in texts for p in lexicon.explain(t) if p.rule == "word"}),
        }  # fmt: skip
    both = list(zip(*lines.values(), strict=True))
    differ = [(a, b) for a, b in both if a["text"] != b["text"]]
    compared = compare(*({x["row"]: x for x in some} for some in lines.values()), seed=seed)
    out["difference"] = {d["metric"]: {k: d[k] for k in ("difference", "low", "high", "clear")}
                         for d in compared["differences"]}  # fmt: skip
    same = [(a, b) for a, b in both if a["text"] == b["text"]]
    shown = (differ + same)[:SHOWN]
    return out | {
        "pairs": len(both), "prompts": len(set(clusters)), "differ": len(differ),
        "beside": [{"row": a["row"], "closed": a["text"], "open": b["text"]} for a, b in shown],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="popi-smol")
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "measured")
    args = parser.parse_args()
    try:
        data = load(corpora.FOLDER, "corpus", limit=args.limit, seed=args.seed, part="prompts")
        model = open_pair(args.bundle, None, config.load(closed_vocabulary=True))
        with closing(model.engine), closing(Meter()) as meter:
            lines = listings(data, model, args.seed, args.work, meter)
        told = {"model": model.model, "engine": model.engine.name, "seed": args.seed, "set": data.format}
        found = told | described(lines, [r.cluster for r in data.rows], args.seed)
        for side, some in lines.items():
            write_listing(args.out / f"{side}_prompts.jsonl", some)
        write_json(args.out / "closed_vocabulary.json", found)
    except PopiError as e:
        print(f"bench.closed_vocabulary: {e}", file=sys.stderr)
        return 1
    print({k: v for k, v in found.items() if k != "beside"})
    return 0


if __name__ == "__main__":
    launch(main)
