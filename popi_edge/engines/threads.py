"""How many threads an engine uses when nobody says."""

from __future__ import annotations

import os


def default_threads() -> int:
    """Cores this process may use, at most 4 (a small model gains nothing beyond)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores))
