"""popi-edge: your signals stay on your device. Only a short, readable summary of what you like ever leaves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popi_edge.approval import PreferenceSummary
    from popi_edge.edge import Answer, Popi, Preview
    from popi_edge.errors import PopiError
    from popi_edge.signals import (
        Comparison,
        Conversation,
        Edit,
        Message,
        Post,
        Profile,
        Rating,
        Signal,
        Statement,
    )

__all__ = [
    "Answer",
    "Comparison",
    "Conversation",
    "Edit",
    "Message",
    "Popi",
    "PopiError",
    "Post",
    "PreferenceSummary",
    "Preview",
    "Profile",
    "Rating",
    "Signal",
    "Statement",
]
_HOME = {"Answer": "edge", "Popi": "edge", "PreferenceSummary": "approval", "Preview": "edge", "PopiError": "errors"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import popi_edge`` costs next to nothing (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'popi_edge' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"popi_edge.{_HOME.get(name, 'signals')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
