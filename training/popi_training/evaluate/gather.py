"""Several results of ``popi eval --json`` as one table: for a bundle's manifest (JSON) and to read (Markdown, printed).

    python -m popi_training.evaluate.gather OUT.json NAME=RESULT.json …
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training.evaluate.journal import write_whole

SHOWN = {
    "raw": "raw signals", "untrained_summary": "untrained summary", "shuffled_summary": "another’s summary",
    "summary": "**summary**", "oracle_summary": "oracle",
}  # fmt: skip
KEPT = ("accuracy", "low", "high", "contrast", "contrast_low", "contrast_high", "tokens")


def read(word: str) -> tuple[str, dict[str, Any]]:
    """``NAME=FILE`` → its name and result. Raises ConfigError for a word or a file that is none."""
    name, _, path = word.partition("=")
    try:
        result = json.loads(Path(path).read_text("utf-8"))
        kept = {k: result[k] for k in ("conditions", "gap_closed", "model", "engine", "pairs", "seed")}
        markdown(gathered({name: kept}))
        return name, kept
    except OSError as e:
        raise ConfigError(f"cannot read {path or word}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ConfigError(f"{path}: not a result of popi eval --json: {e}") from None


def gathered(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By name: pairs, each condition's figures rounded to three places, and the summary's share of the oracle's gap."""
    out = {}
    for name, r in results.items():
        conditions = {c: {k: _short(v[k]) for k in KEPT} for c, v in r["conditions"].items()}
        closed = {k: _short(v) for k, v in (r["gap_closed"].get("summary") or {}).items()}
        out[name] = {"pairs": r["pairs"], "seed": r["seed"], "conditions": conditions, "gap_closed": closed}
    return out


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def markdown(table: dict[str, Any]) -> str:
    """Contrasts with intervals, the summary's share of the oracle's gap, tokens of raw signals and of the summary."""
    head = f"| Test set (pairs) | {' | '.join(SHOWN.values())} | share of the gap | tokens |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for name, t in table.items():
        found, share = t["conditions"], t["gap_closed"].get("contrast")
        cells = [f"{name} ({t['pairs']})"]
        cells += [_contrast(found.get(c)) for c in SHOWN]
        cells += ["–" if share is None else f"{share:.2f}"]
        cells += [" → ".join(f"{found[c]['tokens']:.0f}" for c in ("raw", "summary") if c in found)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _contrast(found: dict[str, Any] | None) -> str:
    """A condition's contrast with its interval (there is none of one prompt); of one that was left out a dash."""
    if found is None:
        return "–"
    low, high = found["contrast_low"], found["contrast_high"]
    return f"{found['contrast']:.2f}" + ("" if low is None else f" ({low:.2f}–{high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("results", nargs="+", metavar="NAME=RESULT.json")
    options = parser.parse_args()
    try:
        if odd := next((word for word in options.results if "=" not in word), None):
            raise ConfigError(f"{odd!r:.80} names no result; give NAME=RESULT.json")
        if len({word.partition("=")[0] for word in options.results}) < len(options.results):
            raise ConfigError("two results have one name")
        table = gathered(dict(map(read, options.results)))
        write_whole(options.out, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    except (PopiError, OSError) as e:
        sys.exit(f"gather: {e}")
    print(markdown(table))


if __name__ == "__main__":
    launch(main)
