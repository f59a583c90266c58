"""The four datasets that POPI was measured on (arXiv 2510.17881), as people to train on and to measure.

By public name, or from local rows of the same shape (``popi_training.records``). The columns that are read:

``elix``      a judgement a row: prompt, response_x, response_y, label (0: x was preferred, 1: y), scorer_level (whose
              judgement: child, preteen, teenager, young adult, expert); level_x, level_y (for whom the replies are)
``review``    the same; scorer_level is positive, negative, concise or verbose, or two of them with a plus between
``roleplay``  a pair a row: x, yw (preferred), yl, level (the persona's id); score_persona (its persona_description)
``alignx``    a person a row: prompt, chosen, rejected, Pair-wise Comparative Feedback (pairs of the same three);
              ground_truth_persona in the files made for evaluation

Other columns are left alone; those after a semicolon may be missing. Of AlignX a person's posts, description
(Demographic Information) and profile are not read.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError, SignalError
from popi_edge.signals import Comparison, _text
from popi_training import records
from popi_training.evaluate.data import HISTORY, Row, _comparison, _field, generator, same_text
from popi_training.people import Person, Target

PUBLIC = {
    "elix": "Asap7772/elix_generations_autolabel",
    "review": "Asap7772/steered_reviews_full_autolabel_gpt4o_pref",
    "roleplay": "sher222/persona-iterative-responses",
    "alignx": "JinaLeejnl/AlignX",
}
FORMATS = tuple(PUBLIC)
LEVELS = ("child", "preteen", "teenager", "young adult", "expert")
"""Of ELIX, in order: a level and the one as far from the other end are opposite; the middle one has no opposite."""
WORDS = {"positive": "negative", "negative": "positive", "concise": "verbose", "verbose": "concise"}
"""Of Review, each with its opposite."""

Ranked = tuple[tuple[int, float, str], Person]
"""A person, and where they stand in the drawn order."""


@dataclass(frozen=True)
class Loaded:
    """People in a drawn order, what was left out and why, and where all came from.

    ``sha256``: of the file, or of names and hashes in a folder, or of a hub's rows. ``licence``: as the dataset's card
    states it, if there was one. ``personas``: id of a person → what they share with all who judge by the same persona.
    """

    people: tuple[Person, ...]
    dropped: Mapping[str, int]
    sha256: str
    format: str
    licence: str
    personas: Mapping[str, str] = field(default_factory=dict)

    def persona(self, person: Person) -> str:
        return self.personas.get(person.id, person.id)


def load(
    name_or_path: str, format: str = "auto", *, limit: int | None = None, seed: int = 0, signals: int = 8,
    targets: int = 4, split: str = "train", allow_download: bool = False,
) -> Loaded:  # fmt: skip
    """People of ``signals`` past pairs and ``targets`` held-out ones, of other prompts; the first ``limit`` of them.

    In the first three datasets a few personas judge many prompts: a persona is cut into as many people as its prompts
    allow, no prompt twice, and one with too few for a single person is dropped. Which prompt goes where, and which pair
    of a prompt is taken, is drawn by ``seed`` and the prompt alone, so that the order of rows and the other personas do
    not matter, and people of opposite personas mostly get the same prompts. Under one seed a larger limit keeps what a
    smaller one drew; the personas take turns.

    A person of AlignX has their own few pairs: up to ``signals`` of the history, then as targets the row's own pair and
    what is left of the history, up to ``targets``. So most have four signals and one target.

    ``format``: one of FORMATS, or ``auto``: as the public name or the columns (ELIX and Review: the judge) say.
    ``split`` is for a public name, and for folders that tell splits apart. Nothing is downloaded unless
    ``allow_download`` is set. The whole file is checked, and refused if anything in it is wrong.
    Raises ConfigError (no such data, a library that is missing, nobody left), SignalError (naming row or line, and
    column). Does not protect against one prompt worded in two ways, nor against what the card of a dataset forbids.
    """
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"format is {format!r}; it must be auto or one of {', '.join(FORMATS)}")
    for name, value in (("limit", limit), ("signals", signals), ("targets", targets)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    source, known = _source(name_or_path, split, allow_download)
    first = next(source.rows, None)
    if first is None:
        raise ConfigError(f"{source.name}: has no rows")
    format = format if format != "auto" else known or _recognise(*first)
    table = itertools.chain([first], source.rows)
    draw = _Draw(signals, targets, seed)
    ranked = _alignx(table, draw) if format == "alignx" else _judges(table, format, draw)
    drawn = sorted(ranked, key=itemgetter(0)) if limit is None else heapq.nsmallest(limit, ranked, key=itemgetter(0))
    if not drawn:
        why = ", ".join(f"{k} {v}" for k, v in draw.dropped.items() if v)
        raise ConfigError(f"{source.name}: nobody has {signals} signals and {targets} targets ({why})")
    people = tuple(person for _, person in drawn)
    personas = {p.id: draw.personas[p.id] for p in people}
    return Loaded(people, dict(draw.dropped), source.sha256, format, source.licence, personas)


@dataclass
class _Draw:
    """How people are drawn, and what is learnt on the way: what was left out, and each person's persona."""

    signals: int
    targets: int
    seed: int
    dropped: Counter[str] = field(default_factory=Counter)
    personas: dict[str, str] = field(default_factory=dict)

    def may_drop(self, *reasons: str) -> None:
        self.dropped.update(dict.fromkeys(reasons, 0))

    def rank(self, turn: int, key: str, name: str) -> tuple[int, float, str]:
        """``key`` decides among those of one turn."""
        return turn, generator(self.seed, "person", key).random(), name


def public(name: str) -> str | None:
    """The format that a public name, in whatever case, stands for."""
    return next((f for f, known in PUBLIC.items() if known.casefold() == name.casefold()), None)


def _source(name: str, split: str, allow_download: bool) -> tuple[records.Source, str | None]:
    """The rows, and the format if it is a public name that tells it; what lies on the disk under a name comes first."""
    try:
        here = Path(name).exists()
    except OSError as e:
        raise ConfigError(f"cannot read {name[:200]}: {e.strerror}") from None
    if here:
        return records.read(Path(name), split), None
    known = public(name)
    if known is None:
        raise ConfigError(f"{name}: no such file or folder, nor one of {', '.join(PUBLIC.values())}")
    if not allow_download:
        raise ConfigError(
            f"{PUBLIC[known]} is downloaded only with allow_download=True, through `datasets`; or give a local file"
        )
    return records.fetch(PUBLIC[known], split), known


def _recognise(where: str, item: Any) -> str:
    if not isinstance(item, Mapping):
        raise SignalError(f"{where}: not a JSON object")
    columns = set(item)
    if {"x", "yw", "yl"} <= columns:
        return "roleplay"
    if {"prompt", "chosen", "rejected"} <= columns:
        return "alignx"
    if {"prompt", "response_x", "response_y"} <= columns:
        judge = _field(item, "scorer_level", where).strip()
        if judge in LEVELS:
            return "elix"
        if set(judge.split("+")) <= set(WORDS):
            return "review"
    raise ConfigError(f"{where}: not recognised as one of {', '.join(FORMATS)}; say which format it is")


# ELIX, Review, Roleplay: personas that judge many prompts ------------------------------------------------------
def _judges(table: Iterator[tuple[str, Any]], format: str, draw: _Draw) -> Iterator[Ranked]:
    draw.may_drop("identical_replies", "duplicates", "contradictions", "other_pairs_of_a_prompt")
    draw.may_drop("left_over_prompts", "too_few_prompts")
    if format == "elix":
        draw.may_drop("neither_reply_at_their_level")
    judged: dict[str, dict[str, Comparison]] = defaultdict(dict)
    told: dict[str, str] = {}
    for where, item in table:
        read = _roleplay_row(item, where) if format == "roleplay" else _labelled_row(item, where, format)
        persona, pair, about = read
        told[persona] = min(filter(None, (told.get(persona), about)), default="")
        pairs = judged[persona]
        if pair.chosen == pair.rejected:
            draw.dropped["identical_replies"] += 1
        elif format == "elix" and not _at_level(item, persona):
            draw.dropped["neither_reply_at_their_level"] += 1
        elif pair.id in pairs:
            draw.dropped["duplicates"] += 1
        else:
            pairs[pair.id] = pair
    for persona, pairs in judged.items():
        order = _order(list(pairs.values()), draw)
        count, left = divmod(len(order), draw.signals + draw.targets)
        draw.dropped["left_over_prompts" if count else "too_few_prompts"] += left if count else 1
        held, past = order[: count * draw.targets], order[count * draw.targets :]
        for k in range(count):
            name = f"{format}:{persona}:{k:04d}"
            draw.personas[name] = persona
            mine = tuple(past[k * draw.signals : (k + 1) * draw.signals])
            others = tuple(map(_target, held[k * draw.targets : (k + 1) * draw.targets]))
            yield draw.rank(k, persona, name), Person(name, mine, others, told[persona])


def _order(pairs: Sequence[Comparison], draw: _Draw) -> list[Comparison]:
    """One pair of each prompt, in an order drawn by seed and prompt."""
    judgements = {(p.prompt, p.chosen, p.rejected) for p in pairs}
    by_prompt: dict[str, list[tuple[float, str, Comparison]]] = defaultdict(list)
    for pair in pairs:
        if (pair.prompt, pair.rejected, pair.chosen) in judgements:
            draw.dropped["contradictions"] += 1
            continue
        prompt = same_text(pair.prompt)
        drawn = generator(draw.seed, "pair", prompt, *sorted((pair.chosen, pair.rejected))).random()
        by_prompt[prompt].append((drawn, pair.id, pair))
    draw.dropped["other_pairs_of_a_prompt"] += sum(len(of) - 1 for of in by_prompt.values())
    prompts = sorted(by_prompt, key=lambda p: (generator(draw.seed, "prompt", p).random(), p))
    return [min(by_prompt[p], key=itemgetter(0, 1))[2] for p in prompts]


def _labelled_row(item: Any, where: str, format: str) -> tuple[str, Comparison, str]:
    """Whose judgement it is, the pair, and what somebody who knows them would say."""
    prompt, x, y, judge = (_field(item, k, where) for k in ("prompt", "response_x", "response_y", "scorer_level"))
    try:
        label = float(item["label"])
    except (KeyError, TypeError, ValueError, OverflowError):
        label = -1.0
    if label not in (0.0, 1.0):
        problem = "is missing" if "label" not in item else "must be 0 (response_x was preferred) or 1 (response_y)"
        raise SignalError(f"{where}: label {problem}", field="label")
    judge = _valid(judge, "scorer_level", where).strip()
    if format == "elix":
        about = f"Explain things to a reader at this level: {judge}."
    else:
        about = f"Write reviews that are {' and '.join(judge.split('+'))}."
    return judge, _pair(format, where, prompt, *((x, y) if label == 0 else (y, x))), about


def _at_level(item: Mapping[str, Any], judge: str) -> bool:
    """Whether one of the replies is for the judge's own level, where that is told (FSPO's ``scorer_match``)."""
    levels = [str(item.get(k) or "").strip() for k in ("level_x", "level_y")]
    return judge in levels or not all(levels)


def _roleplay_row(item: Any, where: str) -> tuple[str, Comparison, str]:
    prompt, chosen, rejected, persona = (_field(item, k, where) for k in ("x", "yw", "yl", "level"))
    about = item.get("score_persona")
    if isinstance(about, Mapping):
        about = about.get("persona_description")
    if about is not None and not isinstance(about, str):
        raise SignalError(f"{where}: score_persona must hold a persona_description as text", field="score_persona")
    persona, about = _valid(persona, "level", where), _valid(about or "", "score_persona", where).strip()
    if about.startswith("{"):  # in CSV an object is spelled out, and no sentence to go by
        about = ""
    return persona.strip(), _pair("roleplay", where, prompt, chosen, rejected), about


def _valid(text: str, name: str, where: str) -> str:
    """``text``, where it is such as a signal's may be. Raises SignalError."""
    try:
        return _text(text, name, empty=True)
    except SignalError as e:
        raise SignalError(f"{where}: {e}", field=name) from None


def _pair(format: str, where: str, prompt: str, chosen: str, rejected: str) -> Comparison:
    """A past choice, named after what it says."""
    name = f"{format}-{_hash(prompt, chosen, rejected)}"
    return _comparison(name, format, where, prompt=prompt, chosen=chosen, rejected=rejected)


def _hash(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _target(pair: Comparison) -> Target:
    return Target(pair.prompt, pair.chosen, pair.rejected)


# AlignX: a row is a person -------------------------------------------------------------------------------------
def _alignx(table: Iterator[tuple[str, Any]], draw: _Draw) -> Iterator[Ranked]:
    draw.may_drop("identical_replies", "own_prompt_in_history", "no_pairs", "duplicates")
    for where, item in table:
        own = _alignx_pair(item, where)
        history = item.get(HISTORY)
        if history is not None and not isinstance(history, list):
            raise SignalError(f"{where}: {HISTORY} must be a list of pairs", field=HISTORY)
        past = [_alignx_pair(pair, f"{where}, {HISTORY} {k}") for k, pair in enumerate(history or (), 1)]
        about = "" if item.get("ground_truth_persona") is None else _field(item, "ground_truth_persona", where)
        about = _valid(about, "ground_truth_persona", where)
        name = f"alignx:{_hash(own.id, about, *(p.id for p in past))}"
        fit = [p for p in past if p.chosen != p.rejected]
        if own.chosen == own.rejected:
            draw.dropped["identical_replies"] += 1
        elif same_text(own.prompt) in {same_text(p.prompt) for p in past}:
            draw.dropped["own_prompt_in_history"] += 1
        elif not fit:
            draw.dropped["no_pairs"] += 1
        elif name in draw.personas:
            draw.dropped["duplicates"] += 1
        else:
            draw.personas[name] = about or name
            mine, others = _split(name, own, fit, draw)
            yield draw.rank(0, name, name), Person(name, mine, tuple(map(_target, others)), about)


def _alignx_pair(item: Any, where: str) -> Comparison:
    return _pair("alignx", where, *(_field(item, k, where) for k in ("prompt", "chosen", "rejected")))


def _split(
    name: str, own: Comparison, past: Sequence[Comparison], draw: _Draw
) -> tuple[tuple[Comparison, ...], list[Comparison]]:
    """Signals, in the order of the row, and targets: the row's own pair and those past ones that are no signals."""
    drawn = generator(draw.seed, "signals", name).sample(range(len(past)), min(draw.signals, len(past)))
    mine = tuple(past[i] for i in sorted(drawn))
    asked = {same_text(p.prompt) for p in (own, *mine)}
    others = [own]
    for pair in past:
        if same_text(pair.prompt) not in asked and len(others) < draw.targets:
            asked.add(same_text(pair.prompt))
            others.append(pair)
    return mine, others


# People as rows to evaluate ------------------------------------------------------------------------------------
def rows(loaded: Loaded) -> list[Row]:
    """The people's targets as rows of ``popi_training.evaluate``: the best of three kinds that these people allow.

    1. Where people of opposite personas chose differently between the same two replies: those alone, in couples that
       are each other's ``mirror``, with both oracles. (Opposite: the ends of ELIX's levels, Review's words and, where a
       file names two, AlignX's personas.)
    2. Else, where there are but two personas and they are opposite: every target, with both oracles, but no mirror.
    3. Else every target, without a mirror and with empty oracles. Then ``oracle_summary`` says nothing (its two
       contexts are the bare prompt, and every contrast a tie), so that there is no ceiling and no gap closed; and
       contrast is against a person of any other persona, not of an opposite one: it shows that a summary tells people
       apart. Accuracy under every other condition means what it always does. Of one persona alone no contrast can be
       made at all (``conditions.draw_donors`` refuses).

    Profiles are not known. Nobody is contrasted with a person of the same persona.
    """
    opposite = _opposites(loaded)
    oracles = {loaded.persona(p): p.oracle for p in loaded.people}
    out = []
    for one, other in _couples(loaded, opposite):
        block = f"{_name(one)} + {_name(other)}"
        for at, mirror in ((one, other), (other, one)):
            out.append(_row(at, loaded, oracles, opposite, block, _name(mirror)))
    if not out:
        known = opposite if set(oracles) == set(opposite) and len(oracles) == 2 else {}
        out = [_row((p, k), loaded, oracles, known) for p in loaded.people for k in range(len(p.targets))]
    return out


At = tuple[Person, int]
"""One target of a person, by its index."""


def _name(at: At) -> str:
    return f"{at[0].id}:{at[1]}"


def _row(
    at: At, loaded: Loaded, oracles: Mapping[str, str], opposite: Mapping[str, str], block: str = "", mirror: str = ""
) -> Row:
    person, target = at[0], at[0].targets[at[1]]
    persona = loaded.persona(person)
    own, other = (oracles[persona], oracles[opposite[persona]]) if persona in opposite else ("", "")
    texts = (target.prompt, target.chosen, target.rejected)
    return Row(_name(at), persona, *texts, person.signals, None, own, other, block, mirror)


def _opposites(loaded: Loaded) -> dict[str, str]:
    """Persona → the opposite one, of those that are there."""
    there = set(map(loaded.persona, loaded.people))
    match loaded.format:
        case "elix":
            pairs = dict(zip(LEVELS, reversed(LEVELS), strict=True))
        case "review":
            pairs = {p: "+".join(WORDS.get(word, word) for word in p.split("+")) for p in there}
        case "alignx" if len(there) == 2 and all(p.oracle for p in loaded.people):
            pairs = dict(zip(sorted(there), sorted(there, reverse=True), strict=True))
        case _:
            pairs = {}
    return {one: other for one, other in pairs.items() if one != other and {one, other} <= there}


def _couples(loaded: Loaded, opposite: Mapping[str, str]) -> Iterator[tuple[At, At]]:
    """Targets of opposite people that are one pair the other way round, each target once, in the order of people."""
    waiting: dict[tuple[str, str, str, str], list[At]] = defaultdict(list)
    for person in loaded.people:
        persona = loaded.persona(person)
        for k, target in enumerate(person.targets):
            prompt = same_text(target.prompt)
            found = waiting[opposite.get(persona, ""), prompt, target.rejected, target.chosen]
            if persona in opposite and found:
                yield found.pop(0), (person, k)
            elif persona in opposite:
                waiting[persona, prompt, target.chosen, target.rejected].append((person, k))
