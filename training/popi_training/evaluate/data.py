"""Files of real preference pairs, read into rows: a few past choices, and a pair of a prompt not among them.

``alignx``          a JSON list as AlignX publishes it: target pair, four history pairs, profile, persona
``onestopenglish``  JSON lines, one paragraph at three reading levels: a pair is its easiest and its hardest
                    version, a user prefers one of the two throughout
``corpus``          the folder of our own corpus: users made from what training never saw (``popi_training.testsets``)
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError, PopiError, SignalError
from popi_edge.signals import Comparison, Profile, Signal

FORMATS = ("alignx", "onestopenglish", "corpus")
HALVES = ("dev", "final", "all")
PROMPTS = "prompts"
"""The set of our corpus that is meant where none is named."""
HISTORY = "Pair-wise Comparative Feedback"
LONG_AGO = "1970-01-01T00:00:00Z"
"""These files have no times; a fixed one keeps the signals the same in every run."""

NEAR_IDENTICAL = 0.8
"""Two levels whose words agree to more than this share (difflib's ratio) are no choice, and are dropped."""
SIGNALS_A_USER = 4
LEVELS = {
    "elementary": "Simple words that a child can understand.",
    "advanced": "Formal words as in a serious report.",
}
"""The two poles of OneStopEnglish, each with the sentence of somebody who knows what that user likes.

Chosen among four wordings on 80 rows of the dev half, as the one that the untouched base follows best.
"""


@dataclass(frozen=True)
class Row:
    """One user's signals and one held-out pair. ``cluster``: the prompt, as rows of one prompt are kin."""

    id: str
    user_key: str
    prompt: str
    chosen: str
    rejected: str
    signals: tuple[Signal, ...]
    profile: Profile | None
    oracle: str
    opposite_oracle: str
    block: str = ""
    """Rows that belong together (a balanced design): a limit draws whole blocks. Empty: each by itself."""

    mirror: str = ""
    """The row of the opposite user on the same pair, where there is one: what this row is contrasted with."""

    @property
    def cluster(self) -> str:
        return self.prompt


@dataclass(frozen=True)
class Dataset:
    """Rows in a fixed order, how many were dropped and why, and the SHA-256 of the file they came from."""

    rows: tuple[Row, ...]
    dropped: Mapping[str, int]
    sha256: str
    format: str
    personas: tuple[str, str]


def half_of(prompt: str) -> str:
    """``dev`` if the last bit of SHA-256(prompt) is 0, else ``final`` (to be run once, at the end)."""
    return "final" if hashlib.sha256(prompt.encode()).digest()[-1] & 1 else "dev"


def generator(*parts: object) -> random.Random:
    """A random generator that depends on ``parts`` alone, whatever was drawn before."""
    return random.Random(hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).digest())


def load(
    path: Path, format: str, *, half: str = "all", limit: int | None = None, seed: int = 0, part: str = ""
) -> Dataset:
    """The rows of a file; ``limit`` rows of them are drawn by ``seed``, the personas in equal parts.

    ``part``: which test set of our own corpus. A file with anything wrong in it is refused whole, since an evaluation
    on part of it would be another one.
    Raises ConfigError (no such file, nothing left), SignalError (naming the row or line, and the field).
    Does not protect against the same text under two differently worded prompts.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    if half not in HALVES:
        raise ConfigError(f"half is {half!r}; it must be one of {', '.join(HALVES)}")
    if limit is not None and limit < 2:
        raise ConfigError(f"limit is {limit}; it must be at least 2, one row of each persona")
    if format == "corpus" and half != "all":
        raise ConfigError(f"half is {half!r}, but our corpus has no halves; its sets are held out, each in its way")
    if format != "corpus" and part not in ("", PROMPTS):
        raise ConfigError(f"set is {part!r:.60}, but only our corpus has sets, not {format}")
    if format == "corpus":
        from popi_training.testsets import DEFAULT_ROWS, MOST_ROWS, build

        if limit is not None and limit > MOST_ROWS:
            raise ConfigError(f"limit is {limit}; of our own corpus at most {MOST_ROWS:,} rows are drawn")
        rows, digest = build(path, part, limit or DEFAULT_ROWS, seed)
        return Dataset(tuple(rows), {}, digest, f"corpus:{part}", ("one", "other"))
    text, digest = _read(path)
    read = _alignx if format == "alignx" else _onestop
    rows, dropped, personas = read(text, path, half, seed)
    if limit is not None:
        rows = draw(rows, limit, seed, personas)
    for persona in personas:
        if not any(r.user_key == persona for r in rows):
            raise ConfigError(f"{path}: no row of persona {persona[:60]!r} is left (half: {half})")
    return Dataset(tuple(rows), dropped, digest, format, personas)


def draw(rows: Sequence[Row], limit: int, seed: int, personas: Sequence[str]) -> list[Row]:
    """Up to ``limit`` rows drawn by ``seed``: whole blocks where there are blocks, else the personas take turns.

    Under one seed a larger limit keeps what a smaller one drew, so that a run can be extended.
    """
    blocks: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        blocks[row.block or row.id].append(row)
    names = sorted(blocks)
    generator(seed, "limit").shuffle(names)
    if any(len(block) > 1 for block in blocks.values()):
        upto = itertools.accumulate(len(blocks[name]) for name in names)
        whole = sum(1 for _ in itertools.takewhile(lambda total: total <= limit, upto))
        return [row for name in names[: max(1, whole)] for row in blocks[name]]
    queues = [[blocks[n][0] for n in names if blocks[n][0].user_key == p] for p in personas]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return [row for row in turns if row is not None][:limit]


def _read(path: Path) -> tuple[str, str]:
    try:
        blob = path.read_bytes()
        return blob.decode("utf-8"), hashlib.sha256(blob).hexdigest()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text at byte {e.start}") from None


def _field(value: Any, name: str, where: str) -> str:
    if not isinstance(value, Mapping):
        raise SignalError(f"{where}: not a JSON object")
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        problem = "is missing" if name not in value else "must be text that is not empty"
        raise SignalError(f"{where}: {name} {problem}", field=name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SignalError(f"{where}: {name} is not valid Unicode (a lone surrogate)", field=name) from None
    return text


def same_text(text: str) -> str:
    """``text`` as it is compared with others: case and white space do not count."""
    return " ".join(text.casefold().split())


# AlignX ---------------------------------------------------------------------------------------------------
def _alignx(text: str, path: Path, half: str, seed: int) -> tuple[list[Row], dict[str, int], tuple[str, str]]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as e:  # ValueError: also of a number with too many digits
        raise ConfigError(f"{path}: not JSON: {e}") from None
    if not isinstance(items, list) or not items:
        raise ConfigError(f"{path}: must be a JSON list of rows")
    sentences = [_field(item, "ground_truth_persona", f"{path}: row {i}") for i, item in enumerate(items, 1)]
    personas = sorted(set(sentences))
    if len(personas) != 2:
        raise ConfigError(f"{path}: contrast needs two opposite personas; the file has {len(personas)}")
    opposite = {personas[0]: personas[1], personas[1]: personas[0]}
    rows, dropped = [], Counter(own_prompt_in_history=0, identical_replies=0, other_half=0)
    for i, item in enumerate(items, 1):
        row = _alignx_row(item, f"{path}: row {i}", f"alignx-{i:05d}", opposite)
        past = {same_text(s.prompt) for s in row.signals if isinstance(s, Comparison)}
        if same_text(row.prompt) in past:
            dropped["own_prompt_in_history"] += 1
        elif row.chosen == row.rejected:
            dropped["identical_replies"] += 1
        elif half not in ("all", half_of(row.prompt)):
            dropped["other_half"] += 1
        else:
            rows.append(row)
    return rows, dict(dropped), (personas[0], personas[1])


def _alignx_row(item: Any, where: str, name: str, opposite: Mapping[str, str]) -> Row:
    prompt, chosen, rejected, persona = (
        _field(item, key, where) for key in ("prompt", "chosen", "rejected", "ground_truth_persona")
    )
    history = item.get(HISTORY)
    if not isinstance(history, list) or not history:
        raise SignalError(f"{where}: {HISTORY} must be a list of pairs", field=HISTORY)
    signals = []
    for k, pair in enumerate(history, 1):
        place = f"{where}, {HISTORY} {k}"
        texts = {key: _field(pair, key, place) for key in ("prompt", "chosen", "rejected")}
        signals.append(_comparison(f"{name}-{k}", "alignx", place, **texts))
    profile = None
    if item.get("profile") is not None:
        about = _field(item, "profile", where)
        profile = Profile(about, id=f"{name}-profile", at=LONG_AGO, source="alignx")
    return Row(name, persona, prompt, chosen, rejected, tuple(signals), profile, persona, opposite[persona])


def _comparison(name: str, source: str, where: str, *, prompt: str, chosen: str, rejected: str) -> Comparison:
    try:
        return Comparison(prompt, chosen, rejected, id=name, at=LONG_AGO, source=source)
    except PopiError as e:
        raise SignalError(f"{where}: {e}") from None


# OneStopEnglish -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Paragraph:
    name: str
    prompt: str
    elementary: str
    advanced: str

    @property
    def gap(self) -> float:
        """log of how much longer the advanced version is, in characters; negative where it is the shorter."""
        return math.log(len(self.advanced) / len(self.elementary))

    def pair(self, level: str) -> dict[str, str]:
        other = "advanced" if level == "elementary" else "elementary"
        return {"prompt": self.prompt, "chosen": getattr(self, level), "rejected": getattr(self, other)}


def _onestop(text: str, path: Path, half: str, seed: int) -> tuple[list[Row], dict[str, int], tuple[str, str]]:
    """Four rows a block: a paragraph longer in its hard version, one in its easy one; each for both users.

    So "the longer reply wins" is right for half of the rows *of each user*: length does not tell the level.
    """
    dropped = Counter(near_identical=0, same_length=0, unmatched_length=0, other_half=0)
    halves: dict[str, list[_Paragraph]] = {"dev": [], "final": []}
    for i, line in enumerate(text.split("\n"), 1):  # not splitlines: a text may hold other ends of lines
        if line.strip():
            paragraph = _paragraph(line, f"{path}: line {i}")
            same = _similarity(paragraph.elementary, paragraph.advanced) > NEAR_IDENTICAL
            if same or len(paragraph.elementary) == len(paragraph.advanced):
                dropped["near_identical" if same else "same_length"] += 1
            elif half not in ("all", half_of(paragraph.prompt)):
                dropped["other_half"] += 1
            else:
                halves[half_of(paragraph.prompt)].append(paragraph)
    rows: list[Row] = []
    for paragraphs in halves.values():
        blocks = balance(paragraphs, seed)
        dropped["unmatched_length"] += len(paragraphs) - 2 * len(blocks)
        for up, down in blocks:
            rows += _block(up, down, blocks, seed)
    return rows, dict(dropped), ("advanced", "elementary")


def _paragraph(line: str, where: str) -> _Paragraph:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as e:  # ValueError: also of a number with too many digits
        raise SignalError(f"{where}: not JSON: {e}") from None
    doc = " ".join(_field(item, "doc", where).removeprefix("WNL").split())  # the corpus's mark of a weekly lesson
    number = item.get("para")
    if not isinstance(number, int) or not doc:
        raise SignalError(f"{where}: {'para must be a whole number' if doc else 'doc has no name'}", field="para")
    elementary, advanced = _field(item, "elementary", where), _field(item, "advanced", where)
    prompt = f"Explain this part of the news story about {doc}."
    return _Paragraph(f"{item['doc'].strip()}/{number}", prompt, elementary, advanced)


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.casefold().split(), b.casefold().split(), autojunk=False).ratio()


def balance(paragraphs: Sequence[Any], seed: int) -> list[tuple[Any, Any]]:
    """Pairs (hard version longer, easy version longer) of paragraphs, their length gaps as alike as can be.

    Greedy nearest neighbour without replacement, in an order drawn by ``seed``; the rarer kind is used up.
    """
    up = sorted((p for p in paragraphs if p.gap > 0), key=lambda p: p.name)
    down = sorted((p for p in paragraphs if p.gap < 0), key=lambda p: p.name)
    few, many = (down, up) if len(down) <= len(up) else (up, down)
    few = list(few)
    generator(seed, "balance").shuffle(few)
    out = []
    for one in few:
        best = min(many, key=lambda p: (abs(abs(p.gap) - abs(one.gap)), p.name))
        many.remove(best)
        out.append((one, best) if one.gap > 0 else (best, one))
    return out


def _block(up: _Paragraph, down: _Paragraph, blocks: Sequence[tuple[_Paragraph, _Paragraph]], seed: int) -> list[Row]:
    rows = []
    block = f"{up.name} + {down.name}"
    for target in (up, down):
        for level, sentence in LEVELS.items():
            other = next(v for k, v in LEVELS.items() if k != level)
            past = _past(target, level, blocks, seed)
            signals = tuple(
                _comparison(f"{level[0]}{k}:{p.name}"[:200], "onestopenglish", p.name, **p.pair(level))
                for k, p in enumerate(past, 1)
            )
            pair = target.pair(level)
            texts = (target.prompt, pair["chosen"], pair["rejected"])
            rows.append(Row(f"{target.name}:{level}", level, *texts, signals, None, sentence, other, block))
    return rows


def _past(
    target: _Paragraph, level: str, blocks: Sequence[tuple[_Paragraph, _Paragraph]], seed: int
) -> list[_Paragraph]:
    """Paragraphs of other stories, half of them of either length kind, in an order drawn by ``seed``."""
    rng = generator(seed, "past", target.name, level)
    past: list[_Paragraph] = []
    for kind in (0, 1):
        stories: dict[str, list[_Paragraph]] = defaultdict(list)
        for block in blocks:
            if block[kind].prompt != target.prompt and block[kind].prompt not in {p.prompt for p in past}:
                stories[block[kind].prompt].append(block[kind])
        if len(stories) < SIGNALS_A_USER // 2:
            raise ConfigError(f"too few stories to draw {SIGNALS_A_USER} earlier paragraphs from")
        names = rng.sample(sorted(stories), SIGNALS_A_USER // 2)
        past += [rng.choice(stories[n]) for n in names]
    rng.shuffle(past)
    return past
