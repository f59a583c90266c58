"""Programs for whoever gets a bundle and has no popi: they are put into its README as they are here."""

from __future__ import annotations

from pathlib import Path

PLAIN_ONNXRUNTIME = Path(__file__).with_name("plain_onnxruntime.py")
