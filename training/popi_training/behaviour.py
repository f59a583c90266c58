"""What a bundle's summaries say, by kind and number of signals; when it stays silent; how many different ones it has.

    python -m popi_training.behaviour OUT [--bundle B] [--rows N] [--seed S]

Writes OUT.json, OUT.jsonl (every summary beside what the user wants) and, where matplotlib is there, OUT.png. Users are
those of ``testsets``; what a summary names is read by ``probe``. Chance of naming the right one of 56 poles is 1.8%.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popi_edge import config
from popi_edge.cli.common import at_least, launch
from popi_edge.errors import PopiError
from popi_training import corpus as corpora
from popi_training import probe, testsets
from popi_training.evaluate.journal import write_whole
from popi_training.evaluate.run import Pair, open_pair
from popi_training.users import KINDS, Mix, User, draw

NUMBERS = (1, 2, 4, 8, 16)
SPOKEN = Mix(silent=0.0)


def users(part: str, rows: int, seed: int) -> list[User]:
    """The users of a set. ``silent``: facts only. ``mixed``: with changes of mind."""
    if part == "silent":
        material, _, _ = testsets.source(corpora.FOLDER, "prompts")
        return [draw(f"silent:{seed}:{k}", material, Mix(silent=1.0)) for k in range(rows)]
    if part in ("mixed", "changed"):
        material, _, _ = testsets.source(corpora.FOLDER, "prompts")
        mix = SPOKEN if part == "mixed" else Mix(silent=0.0, change=1.0, cancel=0.0, wants=(1.0,))
        return [draw(f"{part}:{seed}:{k}", material, mix) for k in range(rows)]
    material, mix, _ = testsets.source(corpora.FOLDER, part)
    return [draw(f"{part}:{seed}:{k}", material, mix) for k in range(rows)]


def summaries(model: Pair, people: Sequence[User]) -> list[tuple[User, str, str]]:
    """(user, summary, status) of each."""
    out = []
    for user in people:
        made = model.infer(user.signals)
        out.append((user, made.text if made.status == "draft" else "", made.status))
    return out


def figures(made: Sequence[tuple[User, str, str]]) -> dict[str, Any]:
    """Shares of wants named, contradicted and missed; F1; silent users; different texts."""
    verdicts = [probe.judge(text, user.wants, probe.fitted()) for user, text, _ in made]
    wants = sum(len(user.wants) for user, _, _ in made)
    texts = [text for _, text, _ in made if text]
    share = (lambda name: round(sum(getattr(v, name) for v in verdicts) / wants, 4)) if wants else (lambda name: None)
    return {
        "users": len(made), "wants": wants, "named": share("named"), "opposite": share("opposite"),
        "missed": share("missed"), "others_a_user": round(sum(v.other for v in verdicts) / len(made), 4),
        "f1": round(probe.f1(verdicts), 4), "silent": round(sum(not t for _, t, _ in made) / len(made), 4),
        "distinct": len(set(texts)),
    }  # fmt: skip


def by_wants(made: Sequence[tuple[User, str, str]]) -> dict[str, Any]:
    """``figures`` apart by the number of wants."""
    numbers = sorted({len(user.wants) for user, _, _ in made})
    return {str(n): figures([m for m in made if len(m[0].wants) == n]) for n in numbers}


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of named and contradicted poles by kind, and lines by number of signals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    kinds = [results[f"kind-{k}"] for k in KINDS]
    left.bar(range(len(KINDS)), [r["named"] for r in kinds], color="#2a7f62", label="right pole")
    left.bar(range(len(KINDS)), [r["opposite"] for r in kinds], bottom=[r["named"] for r in kinds], color="#c8553d",
             label="opposite pole")  # fmt: skip
    left.set_xticks(range(len(KINDS)), KINDS, rotation=30, ha="right")
    left.set_title("four signals of one kind")
    numbers = [results[f"signals-{n}"] for n in NUMBERS]
    right.plot(NUMBERS, [r["named"] for r in numbers], "o-", color="#2a7f62", label="right pole")
    right.plot(NUMBERS, [r["opposite"] for r in numbers], "o-", color="#c8553d", label="opposite pole")
    right.set_xscale("log", base=2)
    right.set_xticks(NUMBERS, [str(n) for n in NUMBERS])
    right.set_title("number of comparisons")
    for axis in (left, right):
        axis.set_ylim(0, 1.03)
        axis.set_ylabel("share of wants named")
    figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=2)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bundle")
    parser.add_argument("--rows", type=at_least(1), default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        model = open_pair(options.bundle, None, config.load())
        sets = [*(f"kind-{k}" for k in KINDS), *(f"signals-{n}" for n in NUMBERS), "silent", "changed", "mixed"]
        results: dict[str, Any] = {}
        lines = []
        for part in sets:
            began = time.monotonic()
            made = summaries(model, users(part, options.rows * (4 if part == "mixed" else 1), options.seed))
            results[part] = figures(made)
            if part == "mixed":
                results[part]["by_wants"] = by_wants(made)
            lines += [_line(part, *m) for m in made]
            seconds = time.monotonic() - began
            print(f"{part}: {json.dumps(results[part])} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        results["all"] = {"users": len(lines), "distinct": len({x["summary"] for x in lines if x["summary"]})}
        report = {"model": model.model, "identity": model.identity, "engine": model.engine.name, "seed": options.seed}
        write_whole(options.out.with_suffix(".json"), json.dumps(report | {"sets": results}, indent=1) + "\n")
        text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines)
        write_whole(options.out.with_suffix(".jsonl"), text)
        try:
            plot(results, options.out.with_suffix(".png"))
        except ImportError:
            print("no matplotlib: no plot", file=sys.stderr)
    except (PopiError, OSError) as e:
        sys.exit(f"behaviour: {e}")


def _line(part: str, user: User, text: str, status: str) -> dict[str, Any]:
    return {"set": part, "user": user.id, "wants": [f"{w.dimension}:{w.pole}" for w in user.wants], "status": status,
            "summary": text}  # fmt: skip


if __name__ == "__main__":
    launch(main)
