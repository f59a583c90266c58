"""From signals to a summary: select, prompt, decode under the mask. Too little to say is said, not filled."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from popi_edge import drafts, prompts
from popi_edge.injection import commands
from popi_edge.select import window
from popi_edge.signals import Comparison, Edit, Signal

if TYPE_CHECKING:
    from popi_edge.engines.base import Constraint, Engine
    from popi_edge.models.tokenizer import Tokenizer
    from popi_edge.vocabulary import Lexicon

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
WORD = re.compile(r"[^\W\d_]+")
MARKS = (".", "!", "?")
NEAR = 1.0
"""Nats: sentences less likely than the likeliest by more add nothing to how likely their pole is meant."""
END = (-1, -1)


@dataclass(frozen=True)
class Inferred:
    """A summary as inferred. ``status`` is draft or insufficient (then ``text`` is empty and ``reason`` says why);
    ``reason`` also says which signals were left out as commands to the model."""

    text: str
    tokens: int
    status: str
    reason: str
    signal_ids: tuple[str, ...]
    prompt_tokens: int


@dataclass(frozen=True)
class Decoding:
    """How a bundle wants its summaries decoded.

    ``opening`` is put into the model's mouth (an untrained base would repeat the signals otherwise);
    ``sentences`` ends the summary after so many; of so many ``drafts`` the one is kept under which the generator tells
    the person's choices best (``popi_edge.drafts``). ``candidates``: of each pole of each dimension first what is said,
    then what the model was taught. A summary is made of them (``choose``) unless the person did nothing but choose
    between two replies (``only_pairs``), or where it shall be ``known`` in any case; else it is written word by word.
    """

    opening: str = ""
    sentences: int | None = None
    drafts: int = 1
    candidates: tuple[tuple[tuple[str, ...], ...], ...] = ()
    known: bool = False


class Opened:
    """A constraint that has already seen some tokens."""

    def __init__(self, inner: Constraint, tokens: Sequence[int]) -> None:
        self._inner = inner
        self._state = inner.start()
        for token in tokens:
            self._state = inner.advance(self._state, token)
        self.allowed, self.advance = inner.allowed, inner.advance

    def start(self) -> Any:
        return self._state


def write(
    engine: Engine, prompt: Sequence[int], limit: int, constraint: Constraint | None, adapter: str | None,
    how: Decoding, *, temperature: float = 0.0, seed: int = 0,
) -> tuple[str, int]:  # fmt: skip
    """Decode under the constraint, greedily unless drawn at a ``temperature``; the text, opening included, and its
    length in tokens."""
    tokenizer = engine.tokenizer
    ids = tokenizer.encode(how.opening)
    opened = Opened(constraint, ids) if constraint is not None else None
    for token in engine.stream(
        [*prompt, *ids], max_tokens=limit - len(ids), constraint=opened, adapter=adapter, temperature=temperature,
        seed=seed,
    ):  # fmt: skip
        ids.append(token)
        text = tokenizer.decode(ids).rstrip()
        if how.sentences and text.endswith(MARKS) and sum(text.count(m) for m in MARKS) >= how.sentences:
            break
    return tokenizer.decode(ids).strip(), len(ids)


def choose(
    engine: Engine, prompt: Sequence[int], limit: int, constraint: Constraint | None, adapter: str | None,
    how: Decoding,
) -> tuple[str, int]:  # fmt: skip
    """A summary of candidates: each time the pole that is likeliest to be meant behind those before it, of a dimension
    one, until the end is likelier; its text and length in tokens. Empty where nothing may be written.

    Greedy decoding takes the likeliest word and has to go on from there, also where that leads to nothing that the
    model was taught. How likely a pole is meant is the sum over its sentences, of those within ``NEAR`` of the
    likeliest; said is the first of them, read on behind the likeliest. The contract's for having nothing to say is a
    candidate too.
    """
    tokenizer, read, said, named = engine.tokenizer, list[int](), list[int](), 0
    left = {(d, k): pole for d, poles in enumerate(how.candidates) for k, pole in enumerate(poles)}
    silence = tokenizer.encode(str(prompts.spec()["silence"]))
    while left and named != how.sentences:
        options = [(key, tokenizer.encode(" " * bool(read) + text)) for key, pole in left.items() for text in pole]
        options = [(key, ids) for key, ids in options if len(read) + len(ids) < limit]
        options.append((END, [tokenizer.eos] if read else silence))
        opened = Opened(constraint, read) if constraint is not None else None
        found = engine.likeliest(
            [*prompt, *read], [ids for _, ids in options], constraint=opened, max_tokens=limit - len(read),
            adapter=adapter, within=NEAR,
        )  # fmt: skip
        likely = defaultdict[tuple[int, int], float](float)
        for i, score in found:
            likely[options[i][0]] += math.exp(score.total)
        meant = max(likely, key=lambda key: likely[key], default=END)
        if meant == END:
            said = said or (silence if found and not read else [])
            break
        longer = [*said, *tokenizer.encode(" " * bool(said) + left[meant][0])]
        if len(longer) < limit and (constraint is None or writable(constraint, longer, limit)):
            read += next(options[i][1] for i, _ in found if options[i][0] == meant)
            said, named = longer, named + 1
            left = {key: pole for key, pole in left.items() if key[0] != meant[0]}
        else:
            del left[meant]
    return tokenizer.decode(said).strip(), len(said)


def writable(constraint: Constraint, ids: Sequence[int], limit: int) -> bool:
    """Whether the mask would let these tokens through, within ``limit`` tokens."""
    if len(ids) > limit:
        return False
    state = constraint.start()
    for i, token in enumerate(ids):
        if token not in constraint.allowed(state, limit - i):
            return False
        state = constraint.advance(state, token)
    return True


def draft(
    engine: Engine, prompt: Sequence[int], limit: int, constraint: Constraint | None, adapter: str | None,
    how: Decoding, signals: Sequence[Signal],
) -> tuple[str, int]:  # fmt: skip
    """The likeliest summary of the signals that are in the prompt, and its length in tokens: of candidates, where some
    may be said, unless there are ``only_pairs`` and it need not be ``known``; else word by word."""
    known = how.known or not only_pairs(signals)
    chosen = choose(engine, prompt, limit, constraint, adapter, how) if known else ("", 0)
    return chosen if chosen[0] else write(engine, prompt, limit, constraint, adapter, how)


def only_pairs(signals: Sequence[Signal]) -> bool:
    """Whether a person did nothing but choose between two replies, or edit one."""
    return all(isinstance(s, Comparison | Edit) for s in signals)


def understood(signal: Signal, lexicon: Lexicon) -> bool:
    """Whether the signal's text is in the language the model knows: enough of its words are ordinary English ones."""
    words = WORD.findall(" ".join(signal.texts())[:20_000].lower())
    known = sum(w in lexicon.words for w in words)
    return bool(words) and known >= prompts.spec()["evidence"]["english_share"] * len(words)


def spoken(text: str) -> str:
    """A summary with no sentence twice, and without the contract's for having nothing to say, which a trained model was
    taught."""
    text = " ".join(text.replace(prompts.spec()["silence"], " ").split())
    return " ".join(dict.fromkeys(SENTENCE_END.split(text)))


def evidence(signals: Sequence[Signal]) -> int:
    """How much the signals say, in the contract's points."""
    points = prompts.spec()["evidence"]
    return sum(int(points[s.kind]) for s in signals)


def inference_prompt(
    tokenizer: Tokenizer, signals: Sequence[Signal], context: int, previous: str = ""
) -> tuple[int, list[int]]:
    """The prompt for a summary of the newest signals that fit a context of so many tokens.

    Returns the index of the first signal that is in it, and its ids.
    """
    limits = prompts.spec()["limits"]
    texts = [prompts.signal_text(s, tokenizer) for s in signals]
    frame = len(prompts.chat_ids(tokenizer, prompts.infer_messages([], previous)))
    room = min(limits["infer_tokens"], context - limits["summary_tokens"])
    budget = room - frame - 8  # tokens at the seams may come out differently
    start = window([len(tokenizer.encode(t)) for t in texts], budget, limits["drop_block"])
    return start, prompts.chat_ids(tokenizer, prompts.infer_messages(texts[start:], previous))


def infer(
    engine: Engine,
    signals: Sequence[Signal],
    *,
    constraint: Constraint | None = None,
    adapter: str | None = None,
    previous: str = "",
    lexicon: Lexicon | None = None,
    decoding: Decoding = Decoding(),
    judge: str | None = None,
) -> Inferred:
    """Infer one summary from signals in order of insertion. ``lexicon`` also tells which signals are understood. Posts
    and profiles that command the model (``popi_edge.injection``) are left out.

    ``judge``: the generator's adapter, which chooses among several drafts (None: the base).
    """
    limits, tokenizer = prompts.spec()["limits"], engine.tokenizer
    ordered = {s.id: why for s in signals if (why := commands(s))}
    usable = [s for s in signals if s.id not in ordered and (lexicon is None or understood(s, lexicon))]
    ids, note = tuple(s.id for s in usable), _left_out(ordered)
    if evidence(usable) < prompts.spec()["evidence"]["minimum"]:
        lost = len(signals) - len(usable) - len(ordered)
        reason = f"{len(usable)} signals are too few to say anything"
        reason += f" ({lost} more were not understood: not in English)" if lost else ""
        return Inferred("", 0, "insufficient", "; ".join(filter(None, [reason, note])), ids, 0)
    start, prompt = inference_prompt(tokenizer, usable, engine.context_length, previous)
    how = (engine, prompt, limits["summary_tokens"], constraint, adapter, decoding)
    text, tokens = draft(*how, usable[start:])
    said = spoken(text)
    if said and decoding.drafts > 1 and (pairs := drafts.judged(usable[start:], tokenizer)):
        drawn = [write(*how, temperature=drafts.TEMPERATURE, seed=k)[0] for k in range(1, decoding.drafts)]
        texts = [said, *filter(None, map(spoken, drawn))]
        parts = [s for text in texts for s in SENTENCE_END.split(text)]
        said = drafts.best(engine, list(dict.fromkeys([*texts, *parts])), pairs, judge)
    if said != text:
        text, tokens = said, len(tokenizer.encode(said))
    if not text:
        reason = "the signals say nothing of how replies should be"
        return Inferred("", 0, "insufficient", "; ".join(filter(None, [reason, note])), ids[start:], len(prompt))
    return Inferred(text, tokens, "draft", note, ids[start:], len(prompt))


def _left_out(ordered: Mapping[str, str]) -> str:
    """A line on signals that were left out as commands, by id; nothing where there are none."""
    if not ordered:
        return ""
    (first, why), more = next(iter(ordered.items())), len(ordered) - 1
    also = f" and {more} more" if more else ""
    return f"left out, since it speaks to the model: {first}{also} ({why})"
