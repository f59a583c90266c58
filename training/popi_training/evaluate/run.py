"""The evaluation's stages: every summary, then every score, then the tables.

The margin of a row under a context, in nats, sums over tokens with the end token among them:

    m(context) = log p(y⁺|context,x) − log p(y⁻|context,x) − [ log p(y⁺|x) − log p(y⁻|x) ]

with x the prompt, y⁺ the preferred and y⁻ the other reply, and the same generator on the bare prompt as the
reference (where it was trained jointly, that is not the reference of its training). *Accuracy* is the mean of
1[m > 0]; under ``none`` m is 0 for every row, so a tie. (The sign of the bare margin, without a reference, is the
baseline ``likelihood``: a sum over tokens, so it likes the shorter reply.) *Contrast* is the mean of
1[m(own context) > m(the opposite's context)] on the same pair; the reference cancels, and it is ½ for ``none`` by
definition. Ties count ½.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge import prompts
from popi_edge.config import Settings
from popi_edge.engines.base import Constraint, Engine, common_prefix
from popi_edge.errors import ConfigError, EngineError
from popi_edge.signals import Signal
from popi_edge.summarize import Decoding, Inferred, infer
from popi_training.evaluate.conditions import (
    BARE,
    CONDITIONS,
    FROM_SIGNALS,
    Context,
    Donors,
    contexts,
    draw_donors,
    signals_key,
    user_signals,
)
from popi_training.evaluate.data import Dataset, Row
from popi_training.evaluate.journal import Journal, write_whole
from popi_training.evaluate.metrics import Choice, Outcome, Values, comparisons, longer, table, wins
from popi_training.people import leaks

Advance = Callable[[str, int, int], None]
"""Told of progress: the stage, the work of the unit just done, the stage's whole work (both in tokens)."""


@dataclass(frozen=True)
class Pair:
    """An inference model and a generator on one engine: per role an adapter, or None (the base)."""

    engine: Engine
    infer_adapter: str | None = None
    generate_adapter: str | None = None
    constraint: Constraint | None = None
    lexicon: Any = None
    model: str = "untitled"
    identity: str = ""
    decoding: Decoding = field(default_factory=Decoding)
    untrained: Decoding | None = None
    """How the untouched base is made to write its summary beside the trained one; None where nothing is trained."""

    def infer(self, signals: Sequence[Signal], *, untrained: bool = False) -> Inferred:
        """One summary of signals, as the bundle makes it on a device; ``untrained``: as the base alone writes it."""
        return infer(
            self.engine,
            signals,
            constraint=self.constraint,
            adapter=None if untrained else self.infer_adapter,
            lexicon=self.lexicon,
            decoding=self.untrained if untrained and self.untrained else self.decoding,
            judge=self.generate_adapter,
        )

    def settings(self, data: Dataset, seed: int) -> dict[str, Any]:
        """All that a stored unit depends on beside its key: what must agree for a run to be continued."""
        words = sorted(self.lexicon.words) if self.lexicon is not None else []
        how = [asdict(d) for d in (self.decoding, self.untrained) if d is not None]
        how = [{k: v for k, v in d.items() if v or k not in ("candidates", "known")} for d in how]  # as before these
        spec = json.dumps([dict(prompts.spec()), how, words], sort_keys=True).encode()
        return {
            "format": data.format,
            "data": data.sha256,
            "seed": seed,
            "bundle": self.identity,
            "engine": f"{self.engine.name} {getattr(self.engine, 'identity', '')}".strip(),
            "contract": f"{prompts.CONTRACT}-{hashlib.sha256(spec).hexdigest()[:12]}",
            "closed_vocabulary": self.constraint is not None,
        }


def open_pair(bundle: str | None, engine: str | None, settings: Settings) -> Pair:
    """Open a bundle's two roles on one engine. Raises ModelError, EngineError.

    The closed vocabulary is the shipped one, without words that a person added: no figure depends on them.
    """
    from popi_edge.models.bundle import ZERO_SHOT, open_bundle
    from popi_edge.vocabulary import ClosedVocabulary, Lexicon

    opened = open_bundle(bundle, settings)
    running = opened.engine(engine or settings.engine, threads=settings.threads)
    lexicon, constraint = Lexicon.load(), None
    if settings.closed_vocabulary:
        tokenizer, limit = running.tokenizer, prompts.spec()["limits"]["summary_tokens"]
        constraint = ClosedVocabulary(lexicon, tokenizer.token_bytes, tokenizer.eos_ids, max_tokens=limit)
    size = opened.model.stat().st_size
    hashes = [hashlib.sha256(opened.adapters[r].read_bytes()).hexdigest()[:12] for r in sorted(opened.adapters)]
    return Pair(
        running,
        opened.adapter("infer"),
        opened.adapter("generate"),
        constraint,
        lexicon,
        model=f"{opened.name} {opened.version}",
        identity=" ".join([opened.identity, str(size), *hashes]),
        decoding=opened.decoded(settings),
        untrained=Decoding(**ZERO_SHOT) if opened.adapter("infer") else None,
    )


# stage 1 --------------------------------------------------------------------------------------------------
def summarize_all(
    rows: Sequence[Row], pair: Pair, journal: Journal, *, profile: bool, advance: Advance, untrained: bool = False
) -> list[dict[str, Any]]:
    """The summary of every row's signals: text (empty where there is too little to say), tokens, status.

    ``untrained``: as the base alone writes it.
    """
    name = "untrained" if untrained else "summary"
    histories = {}
    for row in rows:
        signals = user_signals(row, profile)
        histories[f"{name}:{signals_key(signals)}"] = signals
    todo = sorted(k for k in histories if k not in journal)
    todo.sort(key=lambda k: [s.content_hash() for s in histories[k]])  # histories that begin alike side by side
    stage = ("untrained " if untrained else "") + ("summaries with profile" if profile else "summaries")
    for key in todo:
        made = pair.infer(histories[key], untrained=untrained)
        kept = asdict(made)
        kept.pop("signal_ids")
        if made.status == "insufficient":
            kept["text"] = ""
        journal.add(key, kept)
        advance(stage, 1, len(todo))
    return [journal[f"{name}:{signals_key(user_signals(row, profile))}"] for row in rows]


# stage 2 --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """One scoring call: a prompt's ids (big-endian bytes sort as the ids do) and a row's two replies."""

    key: str
    prompt: bytes
    row: int

    @property
    def ids(self) -> list[int]:
        return [int(i) for i in np.frombuffer(self.prompt, ">i4")]


class Scores:
    """Bare and contextual scores of rows: asked for first, computed in one go, then read."""

    def __init__(self, rows: Sequence[Row], pair: Pair, journal: Journal) -> None:
        self.rows, self.pair, self.journal = rows, pair, journal
        tokenizer = pair.engine.tokenizer
        self._replies = [
            (prompts.reply_ids(tokenizer, r.chosen), prompts.reply_ids(tokenizer, r.rejected)) for r in rows
        ]
        self._jobs: dict[tuple[int, Context], Job] = {}

    def job(self, i: int, context: Context) -> Job:
        """The scoring call of row ``i`` under a context; identical prompts and replies share one key."""
        found = self._jobs.get((i, context))
        if found is None:
            ids = prompts.generate_ids(
                self.pair.engine.tokenizer,
                self.rows[i].prompt,
                summary=context.summary or None,
                signals=context.signals or None,
            )
            content = json.dumps([ids, self._replies[i], self.pair.generate_adapter])
            key = f"score:{hashlib.sha256(content.encode()).hexdigest()}"
            found = self._jobs[i, context] = Job(key, np.asarray(ids, ">i4").tobytes(), i)
        return found

    def refuse_long(self) -> None:
        """Raises ConfigError naming the first row whose prompt and reply do not fit the engine's context."""
        most = self.pair.engine.context_length
        for i, (row, replies) in enumerate(zip(self.rows, self._replies, strict=True)):
            size = len(self.job(i, BARE).ids) + max(map(len, replies))
            if size > most:
                raise ConfigError(f"row {row.id}: its prompt and reply are {size:,} tokens; {most:,} fit the context")

    def compute(self, advance: Advance) -> None:
        """Run every job not in the journal, those whose prompts begin alike one after the other. Raises EngineError
        naming the row."""
        fresh = {j.key: j for j in self._jobs.values() if j.key not in self.journal}
        todo = sorted(fresh.values(), key=lambda j: (j.prompt, j.key))
        work = [len(job.ids) + sum(map(len, self._replies[job.row])) for job in todo]
        for k, (before, job) in enumerate(itertools.pairwise(todo), 1):
            work[k] -= common_prefix(before.ids, job.ids)  # already in the engine's cache
        for job, tokens in zip(todo, work, strict=True):
            try:
                up, down = self.pair.engine.score(job.ids, self._replies[job.row], adapter=self.pair.generate_adapter)
            except EngineError as e:
                raise EngineError(f"row {self.rows[job.row].id}: {e}") from None
            self.journal.add(job.key, [up.total, down.total])
            advance("scores", tokens, sum(work))

    def raw_margin(self, i: int, context: Context) -> float:
        """log p(y⁺|context,x) − log p(y⁻|context,x)."""
        up, down = self.journal[self.job(i, context).key]
        return float(up - down)

    def margin(self, i: int, context: Context) -> float:
        """m(context) of row ``i``; exactly 0 for the bare prompt."""
        return self.raw_margin(i, context) - self.raw_margin(i, BARE)

    def added(self, i: int, context: Context) -> int:
        """Tokens that the context adds to the bare prompt, template included."""
        return (len(self.job(i, context).prompt) - len(self.job(i, BARE).prompt)) // 4

    def outcome(self, both: Sequence[tuple[Context, Context]]) -> Outcome:
        """One condition over all rows, from (own, the opposite's) context of each; computed before."""
        own = [self.margin(i, c) for i, (c, _) in enumerate(both)]
        other = [self.margin(i, c) for i, (_, c) in enumerate(both)]
        tokens = np.array([self.added(i, c) for i, (c, _) in enumerate(both)], np.float64)
        return Outcome(np.array(own), np.array(other), tokens)

    def baselines(self) -> dict[str, Values]:
        """Wins [rows] of what knows nobody, by name, where it comes from scores."""
        return {"likelihood": wins([self.raw_margin(i, BARE) for i in range(len(self.rows))])}


# stage 3 --------------------------------------------------------------------------------------------------
def outcomes(
    rows: Sequence[Row], donors: Sequence[Donors], summaries: Sequence[str], scores: Scores, profile: bool,
    untrained: Sequence[str] = (), without: Sequence[str] = (),
) -> dict[str, Outcome]:  # fmt: skip
    """Every condition over all rows, from scores already computed."""
    out = {}
    for condition in _run(CONDITIONS, untrained, without):
        both = [contexts(condition, i, rows, donors, summaries, profile, untrained) for i in range(len(rows))]
        out[condition] = scores.outcome(both)
    return out


def _run(conditions: Sequence[str], untrained: Sequence[str], without: Sequence[str]) -> list[str]:
    return [c for c in conditions if c not in without and (c != "untrained_summary" or untrained)]


def describe(rows: Sequence[Row], results: dict[str, Outcome], summaries: Sequence[dict[str, Any]], seed: int,
             known: Mapping[str, Values], profile: bool, personas: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """The tables in the contract's shape: all rows, the shorter-is-right rows and each persona apart. ``truncated`` and
    ``leak_rate``: the shares of summaries as long as may be, and with words in a row of their signals (``leaks``)."""
    lengths = [(len(r.chosen), len(r.rejected)) for r in rows]
    baselines = {"longer": longer(lengths), **known}
    clusters = [r.cluster for r in rows]
    shorter = [i for i, (chosen, rejected) in enumerate(lengths) if chosen < rejected]
    by_persona = {
        p: table(results, baselines, clusters, [i for i, r in enumerate(rows) if r.user_key == p], seed=seed)
        for p in personas
    }
    said = [s for s in summaries if s["text"]]
    own = [(s["text"], user_signals(r, profile)) for r, s in zip(rows, summaries, strict=True) if s["text"]]
    limit = prompts.spec()["limits"]["summary_tokens"]
    return {
        **table(results, baselines, clusters, range(len(rows)), seed=seed),
        "tests": comparisons(results, clusters, seed=seed),
        "users": len({signals_key(user_signals(r, profile)) for r in rows}),
        "shorter": table(results, baselines, clusters, shorter, seed=seed),
        "by_persona": by_persona,
        "distinct_summaries": len({s["text"] for s in said}),
        "statuses": dict(Counter(s["status"] for s in summaries)),
        "summary_tokens": sum(s["tokens"] for s in said) / len(said) if said else None,
        "truncated": sum(s["tokens"] >= limit for s in said) / len(said) if said else None,
        "leak_rate": sum(leaks(text, signals) > 0 for text, signals in own) / len(own) if own else None,
    }


def evaluate(
    data: Dataset, pair: Pair, journal: Journal, *, seed: int = 0, profile: bool = False, advance: Advance,
    scores: Scores | None = None, without: Sequence[str] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Evaluate a pair on rows; the result in the contract's shape, and one line a row with its summary.

    ``profile`` adds a second result, in which each row's description is one more signal. Every finished unit
    is in the journal before the next is begun. ``without``: conditions to leave out. ``scores``: who judges the
    replies, where it is not the pair's own generator (see ``choice``). Raises ConfigError (too few rows), EngineError.
    Does not tell a summary that describes the person from a private code that only this pair reads.
    """
    rows = data.rows
    donors = draw_donors(rows, seed)
    kinds = (False, True) if profile else (False,)
    if scores is None:
        scores = Scores(rows, pair, journal)
        scores.refuse_long()
    summaries = {kind: summarize_all(rows, pair, journal, profile=kind, advance=advance) for kind in kinds}
    plain: dict[bool, list[str]] = {kind: [] for kind in kinds}
    if pair.untrained is not None and "untrained_summary" not in without:
        for kind in kinds:
            made = summarize_all(rows, pair, journal, profile=kind, advance=advance, untrained=True)
            plain[kind] = [s["text"] for s in made]
    texts = {kind: [s["text"] for s in made] for kind, made in summaries.items()}
    for kind in kinds:
        for condition in _run(CONDITIONS if not kind else FROM_SIGNALS, plain[kind], without):
            for i in range(len(rows)):
                for context in contexts(condition, i, rows, donors, texts[kind], kind, plain[kind]):
                    scores.job(i, context)
    scores.compute(advance)
    known = scores.baselines()
    found = {k: outcomes(rows, donors, texts[k], scores, k, plain[k], without) for k in kinds}
    results = [describe(rows, found[k], summaries[k], seed, known, k, data.personas) for k in kinds]
    result = results[0] | {
        "dropped": dict(data.dropped),
        "engine": pair.engine.name,
        "model": pair.model,
        "format": data.format,
        "seed": seed,
    }
    if len(results) > 1:
        result["profile"] = results[1]
    listing = [
        {"row": r.id, "cluster": hashlib.sha256(r.cluster.encode()).hexdigest()[:12], "persona": r.user_key,
         "profile": k, **{n: s[n] for n in ("status", "tokens", "text")},
         "margins": {c: short_margins(float(o.own[i]), float(o.other[i])) for c, o in found[k].items()},
         **_chosen(found[k], i)}
        for k in kinds
        for i, (r, s) in enumerate(zip(rows, summaries[k], strict=True))
    ]
    return result, listing


def short_margins(own: float, other: float) -> list[float]:
    """Both to four places, or whole where these would make a tie of what is none."""
    short = [round(own, 4), round(other, 4)]
    kept = (short[0] == 0) == (own == 0) and (short[0] == short[1]) == (own == other)
    return short if kept else [own, other]


def _chosen(found: Mapping[str, Outcome], i: int) -> dict[str, dict[str, float]]:
    """``right`` of row ``i`` by condition, where choices decide it and not the sign of m."""
    right = {c: float(o.right[i]) for c, o in found.items() if isinstance(o, Choice)}
    return {"right": right} if right else {}


def write_listing(path: Path, listing: Sequence[dict[str, Any]]) -> None:
    """The summaries for reading, with m under one's own context and the opposite taste's (and, where choices were made,
    how often the preferred reply was chosen): one JSON object a line."""
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in listing))
