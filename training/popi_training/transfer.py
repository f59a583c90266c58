"""What summaries are worth to a generator that did not grow up with them, in their own words or in others.

    python -m popi_training.transfer RESULT_DIR (--bundle OTHER | --base) [--paraphrase SEED [--share S]]
        --data FILE --format F [--set S] [--half H] [--limit N] [--seed K] [--engine E] [--out FILE.json]

RESULT_DIR is where ``popi eval --out`` keeps its units; the data arguments are those of that run, since its summaries
are for its rows. They are scored under OTHER's generate adapter (the untouched base where OTHER has none) or under the
untouched base, just as ``popi eval`` scores; raw signals are left out. *Transferred* is the gap closed here over the
gap closed in that run, *kept* the gap of the paraphrases over that of the summaries as written (in contrast, from ½).

With --out finished scores are kept beside it, in FILE.units, and a run that was cut off goes on. A generator that is
trained on summaries of the same corpus is NOT ignorant of its sentences, and a paraphrase has its table's faults.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge import config
from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.models.bases import DEFAULT
from popi_training.cli import Meter
from popi_training.evaluate import report, run
from popi_training.evaluate.conditions import contexts, draw_donors, signals_key, user_signals
from popi_training.evaluate.data import FORMATS, HALVES, Dataset, load
from popi_training.evaluate.journal import UNITS, Journal, write_json
from popi_training.evaluate.metrics import Outcome, gap_closed, interval, mean
from popi_training.paraphrase import as_share, changed, content, paraphrase

CONDITIONS = ("none", "shuffled_summary", "summary", "oracle_summary")
METRICS = ("accuracy", "contrast")
NEEDED = ("format", "data", "seed", "bundle", "engine")
"""What the settings of a run must say."""


@dataclass(frozen=True)
class Source:
    """What ``popi eval --out`` left in ``folder``: its settings, its units by key (``summary:`` and the history's
    ``signals_key``), and its ``result``, empty where it was cut off."""

    folder: Path
    settings: Mapping[str, Any]
    summaries: Mapping[str, Mapping[str, Any]]
    result: Mapping[str, Any]


def read_source(folder: Path) -> Source:
    """Read a run's folder and leave it as it is. Raises ConfigError where it is none, or is damaged."""
    path = folder / UNITS
    try:
        blob = path.read_bytes()
        first, *rest = map(json.loads, blob[: blob.rfind(b"\n") + 1].splitlines())  # what follows is torn
        made = {unit["k"]: unit["v"] for unit in rest if unit["k"].startswith("summary:")}
        if not all(isinstance(s["text"], str) and isinstance(s["status"], str) for s in made.values()):
            raise TypeError
        settings = {k: first["settings"][k] for k in NEEDED} | first["settings"]
        path = folder / "result.json"
        result = json.loads(path.read_text("utf-8")) if path.exists() else {}
        transferred(result, result)  # once here, so that a result of another shape does not come out at the end
        return Source(folder, settings, made, dict(result))
    except OSError as e:
        raise ConfigError(f"{folder} holds no run of popi eval --out: cannot read {path.name}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{path}: damaged, or not of popi eval --out") from None


def summaries_of(source: Source, data: Dataset, seed: int) -> list[dict[str, Any]]:
    """The run's summary of each row. Raises ConfigError where the rows are not those of the run."""
    here = {"format": data.format, "data": data.sha256, "seed": seed}
    found = {name: source.settings.get(name) for name in here}
    if source.result:
        here["pairs"], found["pairs"] = len(data.rows), source.result.get("pairs")
    for name, now in here.items():
        if found[name] != now:
            raise ConfigError(f"{source.folder} was run on other rows: {name} {found[name]!s:.60} there, {now} here")
    keys = [f"summary:{signals_key(user_signals(row, False))}" for row in data.rows]
    lost = [row.id for row, key in zip(data.rows, keys, strict=True) if key not in source.summaries]
    if lost:
        raise ConfigError(f"{source.folder} has no summary for {len(lost)} of {len(keys)} rows, the first {lost[0]}")
    return [dict(source.summaries[key]) for key in keys]


def transfer(
    data: Dataset, summaries: Sequence[Mapping[str, Any]], pair: run.Pair, journal: Journal, *, seed: int = 0,
    reworded: int | None = None, share: float | None = None, advance: run.Advance,
) -> dict[str, Any]:  # fmt: skip
    """Score a summary for each row (``text``, ``status``) under the generator of ``pair``; the result in the shape of
    ``popi eval``, without raw signals.

    With the seed ``reworded`` it is the result of the paraphrases (``share``: as ``paraphrase`` has it); that of the
    summaries as written is then under ``unparaphrased``, and what became of them under ``paraphrase``. Raises
    ConfigError (too few rows), EngineError.
    """
    rows, donors = data.rows, draw_donors(data.rows, seed)
    said = {"written": [str(s["text"]) for s in summaries]}
    if reworded is not None:
        said["paraphrased"] = [paraphrase(text, reworded, share) for text in said["written"]]
    scores = run.Scores(rows, pair, journal)
    fronts = {
        name: {c: [contexts(c, i, rows, donors, texts, False) for i in range(len(rows))] for c in CONDITIONS}
        for name, texts in said.items()
    }
    for front in (front for by_condition in fronts.values() for front in by_condition.values()):
        for i, both in enumerate(front):
            for context in both:
                scores.job(i, context)
    scores.compute(advance)
    found, tables = {}, {}
    for name, texts in said.items():
        found[name] = {condition: scores.outcome(front) for condition, front in fronts[name].items()}
        made = [dict(s) | {"text": t, "tokens": pair.engine.count(t)} for s, t in zip(summaries, texts, strict=True)]
        tables[name] = run.describe(rows, found[name], made, seed, scores.baselines(), False, data.personas)
    if reworded is None:
        return tables["written"]
    shares = [changed(a, b) for a, b in zip(said["written"], said["paraphrased"], strict=True) if content(a)]
    return tables["paraphrased"] | {
        "unparaphrased": tables["written"],
        "paraphrase": {
            "seed": reworded,
            "share": share,
            "changed": statistics.mean(shares) if shares else None,
            "kept": kept(tables["paraphrased"], tables["written"]),
            "difference": _differences(
                found["paraphrased"]["summary"], found["written"]["summary"], [r.cluster for r in rows], seed
            ),
        },
    }


def kept(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float | None]:
    """By metric, the gap from none to the summary of one result over that of another; None where that has none."""
    a, b = after["conditions"], before["conditions"]
    return {m: gap_closed(a["summary"][m], b["none"][m], b["summary"][m]) for m in METRICS}


def transferred(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, float | None]:
    """By metric, the gap closed here over the gap closed in another result; None where that closed none."""
    out: dict[str, float | None] = {}
    for m in METRICS:
        now, was = (result.get("gap_closed", {}).get("summary", {}).get(m) for result in (here, there))
        out[m] = None if now is None or was is None or was <= 0 else now / was
    return out


def _differences(a: Outcome, b: Outcome, clusters: Sequence[str], seed: int) -> dict[str, dict[str, float | None]]:
    """a − b of each metric over the same rows, with the 95% interval over prompts."""
    out = {}
    for metric, values in zip(METRICS, (a.right - b.right, a.beats - b.beats), strict=True):
        low, high = interval(values, clusters, seed=seed) or (None, None)
        out[metric] = {"value": mean(values), "low": low, "high": high}
    return out


def text(result: Mapping[str, Any]) -> str:
    """The result for people."""
    reader = "its generate adapter" if result["adapter"] else "the untouched base"
    parts = [
        f"summaries of {result['source']['bundle'].split()[0]} under {result['model']}, {reader}, on "
        f"{result['engine']}; {result['format']}, {result['half']} rows, seed {result['seed']}, {result['pairs']} pairs"
    ]
    if how := result.get("paraphrase"):
        parts += ["", "As written", report.conditions_text(result["unparaphrased"]), "",
                  f"Paraphrased: {report.number(how['changed'], 2)} of the content words changed"]  # fmt: skip
    parts += [report.conditions_text(result), ""]
    if how:
        parts += [_shares("kept of the gap", how["kept"])]
        parts += [f"{m} by the paraphrase: {report.number(d['value'])} ({report.bounds(d['low'], d['high'])})"
                  for m, d in how["difference"].items()]  # fmt: skip
    parts += [_shares("transferred of the gap closed in that run", result["transferred"])]
    return "\n".join(parts)


def _shares(what: str, shares: Mapping[str, float | None]) -> str:
    return f"{what}: " + ", ".join(f"{m} {report.number(v, 2)}" for m, v in shares.items())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="RESULT_DIR")
    reader = parser.add_mutually_exclusive_group(required=True)
    reader.add_argument("--bundle", metavar="OTHER", help="a bundle's name, folder or GGUF file")
    reader.add_argument("--base", action="store_true", help="the untouched base")
    parser.add_argument("--paraphrase", type=int, metavar="SEED")
    parser.add_argument("--share", type=as_share, metavar="S", help="of the content words that --paraphrase changes")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--set", default="prompts")
    parser.add_argument("--half", choices=HALVES, default="all")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["onnx", "llama_cpp"])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    if options.share and options.paraphrase is None:
        sys.exit("transfer: --share says how much --paraphrase changes; give both")
    try:
        source = read_source(options.source)
        data = load(options.data, options.format, half=options.half, limit=options.limit, seed=options.seed,
                    part=options.set)  # fmt: skip
        summaries = summaries_of(source, data, options.seed)
        pair = run.open_pair(DEFAULT if options.base else options.bundle, options.engine, config.load())
        folder = options.out.with_suffix(".units") if options.out else None
        known = pair.settings(data, options.seed)
        with closing(pair.engine), closing(Meter()) as meter, Journal(folder, known) as journal:
            result = transfer(
                data, summaries, pair, journal, seed=options.seed, reworded=options.paraphrase, share=options.share,
                advance=meter,
            )
        written = result.get("unparaphrased", result)
        result |= {
            "source": {"folder": options.source.resolve().name} | {k: source.settings[k] for k in ("bundle", "engine")},
            "own": pair.identity == source.settings["bundle"], "adapter": pair.generate_adapter is not None,
            "transferred": transferred(written, source.result), "dropped": dict(data.dropped),
            "engine": pair.engine.name, "model": pair.model, "format": data.format, "half": options.half,
            "limit": options.limit, "seed": options.seed,
        }  # fmt: skip
        if options.out:
            write_json(options.out, result)
    except (PopiError, OSError) as e:
        sys.exit(f"transfer: {e}")
    print(text(result))


if __name__ == "__main__":
    launch(main)
