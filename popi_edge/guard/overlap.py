"""Verbatim runs: words that stand in the text in the same order as in a signal.

A run of ``run`` words blocks when at least ``telling`` of them are neither function words nor the plain vocabulary of
how replies can be: a person who says "I like short and direct answers with examples" may well be summarised in these
words, but nobody's seed phrase, street or sentence may. A run of ``always`` words blocks whatever it is made of.

It does NOT find a secret that is cut into shorter runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from popi_edge.guard import Finding, SignalText
from popi_edge.guard.patterns import WORD, fold, words


def overlaps(text: str, signal_texts: Iterable[SignalText], spec: Mapping[str, Any]) -> list[Finding]:
    """The runs that a text shares with any signal, the longest of each place; the first signal is named."""
    limits = spec["overlap"]
    least, telling, always = int(limits["run"]), int(limits["telling"]), int(limits["always"])
    plain = frozenset(spec["function_words"]) | frozenset(spec["reply_words"])
    ours = words(text)
    mine = [w.text for w in ours]
    found: dict[int, tuple[int, str]] = {}
    for signal_id, signal in signal_texts:
        for start, length in common_runs(mine, WORD.findall(fold(signal)), least):
            run = mine[start : start + length]
            blocks = length >= always or sum(w not in plain for w in run) >= telling
            if blocks and length > found.get(start, (0, ""))[0]:
                found[start] = (length, signal_id)
    findings, end = [], 0
    for start, (length, signal_id) in sorted(found.items()):
        if start + length <= end:
            continue  # inside a longer one
        end = start + length
        a, b = ours[start].start, ours[end - 1].end
        why = f"{length} words in a row are those of signal {signal_id}: {text[a:b][:60]!r}"
        findings.append(Finding("overlap", a, b, text[a:b], signal_id, why))
    return findings


def common_runs(ours: Sequence[str], theirs: Sequence[str], least: int) -> Iterator[tuple[int, int]]:
    """Runs of ≥ ``least`` words that both have, as (start in ours, length); each cannot be made longer."""
    if len(ours) < least or len(theirs) < least:
        return
    places: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(ours) - least + 1):
        places.setdefault(tuple(ours[i : i + least]), []).append(i)
    known = set(ours)
    streak = 0
    for j, word in enumerate(theirs):
        streak = streak + 1 if word in known else 0
        if streak < least:
            continue
        first = j - least + 1
        for i in places.get(tuple(theirs[first : j + 1]), ()):
            if i and first and ours[i - 1] == theirs[first - 1]:
                continue  # found already, one word earlier
            rest = zip(ours[i + least :], theirs[j + 1 :], strict=False)
            yield i, least + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], rest))
