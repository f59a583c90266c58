"""Gemma's tokenizer (a BPE with spaces as ▁ and bytes where nothing else fits) as llama.cpp's kind ``llama``.

llama.cpp has no merges there but scores: of all neighbours whose text is a token it joins those with the highest score.
That is the same where every way to make a token from two others is a merge, and merges of one token stand together:
then a token's score is its rank. Both are checked; a tokenizer that was trained otherwise is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popi_edge.errors import ModelError
from popi_edge.models.sentencepiece import SPACE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BYTES = re.compile(r"<0x[0-9A-F]{2}>")
NEVER = -1e6
"""The highest score of a token that no merge makes; each has another one."""


def is_sentencepiece(value: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is built as Gemma's: ▁ for spaces, no other normalizing, whole texts merged at once."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return value.get("normalizer") == replace and value.get("pre_tokenizer") in (None, split)


def scores(
    model: Mapping[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    merges: Sequence[tuple[str, str]],
    path: Path,
) -> tuple[list[str], list[int], list[float], list[str]]:
    """Tokens, types, scores and notes, as llama.cpp needs them. Raises ModelError where scores cannot say what the
    merges say."""
    if model.get("ignore_merges") or not model.get("fuse_unk") or model.get("unk_token") is None:
        raise ModelError(f"{path}: its model is not built as Gemma's (unk_token, fuse_unk, no ignore_merges)")
    kind = dict(zip(tokens, types, strict=True))
    rank: dict[str, int] = {}
    last = ""
    for left, right in merges:
        made = left + right
        if kind[made] != NORMAL:
            continue  # llama.cpp finds it in the text before it joins anything
        if made != last and made in rank:
            raise ModelError(f"{path}: the merges to {made!r:.40} do not stand together, so no score says their order")
        rank.setdefault(made, len(rank))
        last = made
    _whole(kind, set(merges), path)
    out, kinds = list(tokens), list(types)
    for i, token in enumerate(tokens):
        if BYTES.fullmatch(token):
            kinds[i] = BYTE
        elif token == model["unk_token"]:
            kinds[i] = UNKNOWN
        elif kinds[i] == USER_DEFINED:
            out[i] = token.replace(SPACE, " ")  # it is looked for in the text as it was written
    if kinds.count(BYTE) != 256:
        raise ModelError(f"{path}: it has tokens for {kinds.count(BYTE)} bytes, not for 256")
    if len(set(out)) != len(out):
        raise ModelError(f"{path}: a token stands twice in its vocabulary, once with a space and once with {SPACE}")
    runs = [len(t) for t, k in zip(out, kinds, strict=True) if k == USER_DEFINED and not t.strip(" ")]
    notes = [f"a run of more than {max(runs)} spaces, or of {SPACE}, is split otherwise in llama.cpp"] if runs else []
    return out, kinds, [-float(rank[t]) if t in rank else NEVER - i for i, t in enumerate(tokens)], notes


def _whole(kind: Mapping[str, int], merges: set[tuple[str, str]], path: Path) -> None:
    """Raises ModelError where llama.cpp would join two tokens that no merge joins, or make a control token of text."""
    for token, of in kind.items():
        if of == USER_DEFINED and SPACE not in token:
            continue  # found in the text before anything is joined
        for i in range(1, len(token)):
            pair = token[:i], token[i:]
            if pair[0] in kind and pair[1] in kind and (of == CONTROL or pair not in merges):
                what = "plain text could become it" if of == CONTROL else "but no merge joins them"
                raise ModelError(f"{path}: {token!r:.40} is made of the tokens {pair!r:.60}; {what}")
