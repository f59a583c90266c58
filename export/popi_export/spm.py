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

NORMAL, UNKNOWN, BYTE = 1, 2, 6
NEVER = -1e6
"""The score of a token that no merge makes."""


def is_sentencepiece(value: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is built as Gemma's: ▁ for spaces, no other normalizing, whole texts merged at once."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return value.get("normalizer") == replace and value.get("pre_tokenizer") in (None, split)


def scores(
    model: Mapping[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    merges: Sequence[tuple[str, str]],
    path: Path,
) -> tuple[list[float], list[int]]:
    """A score and a type for each token. Raises ModelError where scores cannot say what the merges say."""
    if model.get("ignore_merges") or not model.get("fuse_unk") or model.get("unk_token") is None:
        raise ModelError(f"{path}: its model is not built as Gemma's (unk_token, fuse_unk, no ignore_merges)")
    rank: dict[str, int] = {}
    last = ""
    for left, right in merges:
        made = left + right
        if made != last and made in rank:
            raise ModelError(f"{path}: the merges to {made!r:.40} do not stand together, so no score says their order")
        rank.setdefault(made, len(rank))
        last = made
    known, pairs = set(tokens), set(merges)
    plain = {t for t, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    for token in plain:
        for i in range(1, len(token)):
            if token[:i] in known and token[i:] in known and (token[:i], token[i:]) not in pairs:
                raise ModelError(f"{path}: {token!r:.40} could be made from {token[:i]!r:.30} and {token[i:]!r:.30}, "
                                 "which is no merge of its")  # fmt: skip
    kinds = list(types)
    for i, token in enumerate(tokens):
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            kinds[i] = BYTE
        elif token == model["unk_token"]:
            kinds[i] = UNKNOWN
    if kinds.count(BYTE) != 256:
        raise ModelError(f"{path}: it has tokens for {kinds.count(BYTE)} bytes, not for 256")
    return [-float(rank[t]) if t in rank else NEVER for t in tokens], kinds
