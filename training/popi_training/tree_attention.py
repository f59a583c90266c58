"""Attention over one packed sequence that leaves out what a block of tokens cannot see.

Under a mask a dense kernel multiplies every token with every other. In a packed sequence (``pack``) most of that is
thrown away: whatever comes later, and every branch of the prefix tree but one's own. Here the tokens go by in blocks,
each against those that any of its own may see; what is computed is the same, to float error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Columns = torch.Tensor | slice
NAME = "popi_tree"
BLOCK = 128
"""Tokens that look at once; half and twice as many are no faster on the CPU."""
LEAST = 512
"""Tokens of a sequence from which on leaving out is worth the calls."""


class Blocks:
    """What each block of rows sees, of every mask of one forward pass: found once for all layers."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[torch.Tensor, list[tuple[Columns, torch.Tensor]]]] = {}  # by id; the mask is kept too

    def of(self, mask: torch.Tensor) -> list[tuple[Columns, torch.Tensor]]:
        """Of an additive mask [1, 1, n, n], for each ``BLOCK`` rows: its columns (a slice where none is left out before
        the last), and what the mask says of them [1, 1, rows, columns]."""
        if id(mask) not in self._of:
            sees = mask[0, 0] > torch.finfo(mask.dtype).min / 2
            seen = [_columns(rows) for rows in sees.split(BLOCK)]
            parts = [rows[..., columns] for rows, columns in zip(mask.split(BLOCK, 2), seen, strict=True)]
            self._of[id(mask)] = mask, list(zip(seen, parts, strict=True))
        return self._of[id(mask)][1]


def _columns(rows: torch.Tensor) -> Columns:
    seen = rows.any(0).nonzero().flatten()
    last = int(seen[-1]) + 1
    return slice(last) if last == len(seen) else seen


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor,
    *, blocks: Blocks, **how: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """As ``sdpa_attention_forward``: [1, n, heads, size] from queries [1, heads, n, size], keys and values."""
    out = []
    for asking, (columns, mask) in zip(query.split(BLOCK, 2), blocks.of(attention_mask), strict=True):
        made, _ = sdpa_attention_forward(module, asking, key[:, :, columns], value[:, :, columns], mask, **how)
        out.append(made)
    return torch.cat(out, 1), None


AttentionInterface.register(NAME, attend)


@contextmanager
def leaving_out(model: Any, packed: torch.Tensor) -> Iterator[dict[str, Any]]:
    """A context in which the model attends like this, where that is worth it for ids [packs, n]; what a call of the
    model is to be given beside the rest."""
    config = model.config
    if len(packed) > 1 or packed.shape[1] < LEAST or config._attn_implementation != "sdpa":
        yield {}
        return
    config._attn_implementation = NAME
    try:
        yield {"blocks": Blocks()}
    finally:
        config._attn_implementation = "sdpa"
