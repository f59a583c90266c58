"""A GGUF vocabulary of the kind ``llama`` (SentencePiece, as Gemma's) rebuilt with ``tokenizers``.

llama.cpp joins, of all neighbours whose text is a token, those with the highest score. The same as merges: every way to
make a token from two others, the highest score first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, normalizers

SPACE = "▁"
NORMAL, BYTE = 1, 6


def merges(tokens: Sequence[str], types: Sequence[int], scores: NDArray[np.float64]) -> list[tuple[str, str]]:
    """The merges that do what the scores do; of one token's the shorter first half first."""
    known = {t for t, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    found = []
    for at in np.argsort(-scores, kind="stable"):
        token = tokens[at]
        if token in known and len(token) > 1:
            for i in range(1, len(token)):
                if token[:i] in known and token[i:] in known:
                    found.append((token[:i], token[i:]))
    return found


def build(tokens: Sequence[str], types: Sequence[int], scores: NDArray[np.float64]) -> HfTokenizer:
    """The tokenizer, without its added tokens. Raises ValueError where it cannot be the same as llama.cpp's."""
    if {t for t, kind in zip(tokens, types, strict=True) if kind == BYTE} != {f"<0x{b:02X}>" for b in range(256)}:
        raise ValueError("it lacks tokens for bytes")
    made = [s for s, t, kind in zip(scores, tokens, types, strict=True) if kind == NORMAL and len(t) > 1]
    if not np.isfinite(scores).all() or len(set(made)) != len(made):
        raise ValueError("its scores say no order")
    vocab = {t: i for i, t in enumerate(tokens)}
    out = HfTokenizer(models.BPE(vocab, merges(tokens, types, scores), byte_fallback=True, fuse_unk=True))
    out.normalizer = normalizers.Replace(" ", SPACE)
    out.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return out


def spelt(token: str, kind: int) -> bytes:
    """The bytes that a token stands for."""
    return bytes([int(token[3:5], 16)]) if kind == BYTE else token.replace(SPACE, " ").encode()
