"""An upper bound in bits: how many different summaries can be written at all?

    python -m bench.tells_count [--json FILE]

``sequences`` counts the token sequences that the mask lets through from the start to an end, by dynamic programming
over the automaton's states: c(0, s) = 1 where s is the state behind a sentence mark, c(n, s) = Σ c(n−1, s′) over the
tokens that lead from s to s′; in all Σ c(n, start) for n up to 48. ``texts`` counts the different texts among them:
those whose shortest spelling in tokens fits. Both are exact whole numbers; their logarithm (base 2) bounds what a
summary can tell anybody, whatever the weights. It does NOT say what a model that was not made to smuggle tells.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import base
from popi_edge import prompts
from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_edge.vocabulary import ENDABLE, INNER, MARKS, START, ClosedVocabulary, Lexicon
from popi_training.evaluate.journal import write_json

Edges = list[tuple[int, int]]
"""(state, how many tokens lead there)."""


def edges(mask: ClosedVocabulary) -> tuple[dict[int, Edges], Edges, set[int]]:
    """(edges of every state that can be reached; those that all ends of words share, counted once; these ends)."""
    joints, after = mask._joints
    shared: Edges | None = None
    own: dict[int, Edges] = {}
    ends: set[int] = set()
    todo = [START]
    while todo:
        state = todo.pop()
        if state in own:
            continue
        row = mask._automaton.table[state]
        columns = np.flatnonzero(row)
        if np.array_equal(row[joints], after):
            ends.add(state)
            if shared is None:
                shared = _counted(mask._walk(state, joints)[1])
                todo += [s for s, _ in shared]
            columns = np.setdiff1d(columns, joints)
        own[state] = _counted(mask._walk(state, columns)[1])
        todo += [s for s, _ in own[state] if s not in own]
    return own, shared or [], ends


def _counted(states: Iterable[int]) -> Edges:
    return sorted(Counter(int(s) for s in states).items())


def sequences(mask: ClosedVocabulary, limit: int) -> list[int]:
    """How many token sequences of n tokens, n = 0 … limit, the mask lets through from the start to an end."""
    own, shared, ends = edges(mask)
    now = {state: int(state == ENDABLE) for state in own}
    out = [now[START]]
    for _ in range(limit):
        behind = sum(n * now[s] for s, n in shared)
        now = {
            state: sum(n * now[s] for s, n in some) + (behind if state in ends else 0) for state, some in own.items()
        }
        out.append(now[START])
    return out


def shortest(piece: bytes, tokens: frozenset[bytes], longest: int) -> int:
    """The fewest tokens that spell a piece, 0 where none do."""
    best = [0] + [0] * len(piece)
    for end in range(1, len(piece) + 1):
        ways = [
            best[start] + 1
            for start in range(max(0, end - longest), end)
            if (start == 0 or best[start]) and piece[start:end] in tokens
        ]
        best[end] = min(ways, default=0)
    return best[-1]


def texts(lexicon: Lexicon, token_bytes: Sequence[bytes | None], limit: int) -> list[int]:
    """How many different texts have n tokens in their shortest spelling, n = 0 … limit.

    A text is words with a space before all but the first, and marks; its spelling is theirs put together as long as no
    token reaches over such a joint, which is checked. Raises ConfigError where one does.
    """
    tokens = frozenset(t for t in token_bytes if t)
    over = Joints(lexicon)
    for token in tokens:
        if over.crossed(token):
            raise ConfigError(f"the token {token!r} reaches over the end of a word: texts cannot be counted so")
    longest = max(map(len, tokens))

    def costs(forms: Iterable[str]) -> Counter[int]:
        found = Counter(shortest(f.encode(), tokens, longest) for f in forms)
        del found[0]
        return found

    opening, inside = costs(lexicon.first), costs(f" {w}" for w in lexicon.inside)
    later = costs(f" {w}" for w in lexicon.first)
    inner, ending = costs(INNER), costs(MARKS)
    word, comma, stop = ([0] * (limit + 1) for _ in range(3))
    for n in range(1, limit + 1):
        comma[n] = sum(k * word[n - c] for c, k in inner.items() if c <= n)
        stop[n] = sum(k * word[n - c] for c, k in ending.items() if c <= n)
        word[n] = opening[n] + sum(k * (word[n - c] + comma[n - c]) for c, k in inside.items() if c <= n)
        word[n] += sum(k * stop[n - c] for c, k in later.items() if c <= n)
    return stop


class Joints:
    """Tells tokens that can stand in a text and reach over the end of a word or a mark."""

    JOINT = re.compile(rb"[.,;:!?]? |[.,;:!?]\Z")

    def __init__(self, lexicon: Lexicon) -> None:
        self.words = {w.encode() for w in lexicon.inside | lexicon.first}
        self.heads = {w[:n] for w in self.words for n in range(len(w) + 1)}
        self.tails = {w[n:] for w in self.words for n in range(len(w) + 1)}

    def crossed(self, token: bytes) -> bool:
        """Whether a token is the tail of a word (or nothing), words with joints between, and the head of one; not so a
        mark alone, or one space and the head of a word."""
        first, *rest = self.JOINT.split(token)
        if not rest or (token[0] == 32 and len(rest) == 1) or len(token) == 1:
            return False
        *middle, last = rest
        return first in self.tails and all(m in self.words for m in middle) and last in self.heads


def bits(counts: Sequence[int]) -> float:
    """log2 of how many there are in all, 0 of none."""
    return math.log2(sum(counts)) if sum(counts) else 0.0


def measure(tokenizer: Tokenizer, lexicon: Lexicon, limit: int) -> dict[str, Any]:
    """The bounds, and at how many tokens half of them would be left (the numbers grow by about the same factor)."""
    mask = ClosedVocabulary(lexicon, tokenizer.token_bytes, tokenizer.eos_ids, max_tokens=limit)
    spelled, written = sequences(mask, limit), texts(lexicon, tokenizer.token_bytes, limit)
    return {
        "tokens": limit, "words": len(lexicon), "sequences_bits": round(bits(spelled), 2),
        "texts_bits": round(bits(written), 2), "texts_bits_by_tokens": {
            str(n): round(bits(written[: n + 1]), 2) for n in (8, 16, 24, 32, 48) if n <= limit
        },
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    try:
        limit = int(prompts.spec()["limits"]["summary_tokens"])
        found = measure(Tokenizer(Gguf(base())), Lexicon.load(), limit)
        if args.json:
            write_json(args.json, found)
    except PopiError as e:
        print(f"bench.tells_count: {e}", file=sys.stderr)
        return 1
    print("\n".join(f"{k}: {v}" for k, v in found.items()))
    return 0


if __name__ == "__main__":
    launch(main)
