"""Everything that crosses the public API as an exception.

PopiError                    any refused or failed operation; the CLI prints it on one line and exits 1
├── SignalError              a signal that is malformed (names the field, and the line when there is one)
├── StoreError               the database is locked, from a newer version, damaged, or the disk is full
├── ModelError               a model or bundle that is missing, damaged, of the wrong hash or unsupported
├── EngineError              an engine that is not installed, or that failed while running
├── GuardBlocked             the guard found something that must not leave (``.findings``)
├── NotApproved              a cloud generator was asked for, but no summary version is approved
├── GeneratorError           a generator that is down, slow, too large, or does not speak the protocol
└── ConfigError              settings or arguments that make no sense
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class PopiError(Exception):
    """Any refused or failed operation. ``str(error)`` is one clear line."""


class SignalError(PopiError):
    """A signal that is malformed. ``field`` names the field at fault, ``line`` its line in a file (1-based)."""

    def __init__(self, message: str, *, field: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.line = line


class StoreError(PopiError):
    """The database is locked, from a newer version, damaged, or the disk is full."""


class ModelError(PopiError):
    """A model or bundle that is missing, damaged, of the wrong hash or unsupported."""


class EngineError(PopiError):
    """An engine that is not installed, or that failed while running."""


class GuardBlocked(PopiError):
    """The guard found something that must not leave. ``findings`` lists every reason."""

    def __init__(self, message: str, findings: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class NotApproved(PopiError):
    """A cloud generator was asked for, but no summary version is approved."""


class GeneratorError(PopiError):
    """A generator that is down, slow, too large, or does not speak the protocol."""


class ConfigError(PopiError):
    """Settings or arguments that make no sense."""
