"""From signals to a summary: select, prompt, decode under the mask. Too little to say is said, not filled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from popi_edge import prompts
from popi_edge.select import window
from popi_edge.signals import Signal

if TYPE_CHECKING:
    from popi_edge.engines.base import Constraint, Engine
    from popi_edge.vocabulary import Lexicon

WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Inferred:
    """A summary as inferred. ``status`` is draft or insufficient (then ``text`` is empty and ``reason`` says why)."""

    text: str
    tokens: int
    status: str
    reason: str
    signal_ids: tuple[str, ...]
    prompt_tokens: int


def understood(signal: Signal, lexicon: Lexicon) -> bool:
    """Whether the signal's text is in the language the model knows: enough of its words are ordinary English ones."""
    words = WORD.findall(" ".join(signal.texts())[:20_000].lower())
    known = sum(w in lexicon.words for w in words)
    return bool(words) and known >= prompts.spec()["evidence"]["english_share"] * len(words)


def evidence(signals: Sequence[Signal]) -> int:
    """How much the signals say, in the contract's points."""
    points = prompts.spec()["evidence"]
    return sum(int(points[s.kind]) for s in signals)


def infer(
    engine: Engine,
    signals: Sequence[Signal],
    *,
    constraint: Constraint | None = None,
    adapter: str | None = None,
    previous: str = "",
    lexicon: Lexicon | None = None,
) -> Inferred:
    """Infer one summary from signals in order of insertion. ``lexicon`` also tells which signals are understood."""
    limits, tokenizer = prompts.spec()["limits"], engine.tokenizer
    usable = [s for s in signals if lexicon is None or understood(s, lexicon)]
    ids = tuple(s.id for s in usable)
    if evidence(usable) < prompts.spec()["evidence"]["minimum"]:
        lost = len(signals) - len(usable)
        reason = f"{len(usable)} signals are too few to say anything"
        reason += f" ({lost} more were not understood: not in English)" if lost else ""
        return Inferred("", 0, "insufficient", reason, ids, 0)
    texts = [prompts.signal_text(s, tokenizer) for s in usable]
    frame = len(prompts.chat_ids(tokenizer, prompts.infer_messages([], previous)))
    budget = limits["infer_tokens"] - frame - 8  # tokens at the seams may come out differently
    start = window([engine.count(t) for t in texts], budget, limits["drop_block"])
    prompt = prompts.chat_ids(tokenizer, prompts.infer_messages(texts[start:], previous))
    done = engine.generate(prompt, max_tokens=limits["summary_tokens"], constraint=constraint, adapter=adapter)
    text = done.text.strip()
    return Inferred(text, len(done.ids), "draft", "", ids[start:], len(prompt))
