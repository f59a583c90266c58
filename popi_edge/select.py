"""Which signals go into the prompt: the newest that fit, in the order they came, so that a prompt grows at its end."""

from __future__ import annotations

from collections.abc import Sequence


def window(lengths: Sequence[int], budget: int, block: int) -> int:
    """Index of the first signal kept, for token lengths in order of insertion.

    Adding a signal at the end changes the start only when the budget overflows; then whole blocks of the oldest leave,
    so that a cached prefix stays good between two such moments. The newest signal is always kept.
    """
    start = total = 0
    for i, n in enumerate(lengths):
        total += n
        while total > budget and start < i:
            leave = min((start // block + 1) * block, i)  # to the next block, also where one left in part
            total -= sum(lengths[start:leave])
            start = leave
    return start
