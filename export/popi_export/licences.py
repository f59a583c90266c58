"""Under which licences a bundle's parts stand: their names, their texts, and the notices that go with them.

Taken from what lies beside a checkpoint (LICENSE, NOTICE, the model card's first lines, a GGUF's metadata) or from what
the user says. Not covered: whether that is right, and whether licences go together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError
from popi_edge.models.gguf import Gguf
from popi_export.bounded import read_bytes
from popi_export.source import Source

UNKNOWN = "not known"
SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
FRONT = re.compile(r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9.+-]{0,63})[\"']?[ \t]*$", re.MULTILINE)
LICENCE_FILE = re.compile(r"(LICEN[SC]E|COPYING)(\.(txt|md))?", re.IGNORECASE)
NOTICE_FILE = re.compile(r"NOTICE(\.(txt|md))?", re.IGNORECASE)
MAX_TEXT, MAX_CARD = 1 << 20, 1 << 16


@dataclass(frozen=True)
class Licences:
    """``names``: part (model, base, adapter, corpus) → licence; ``texts``: part → the licence's text; ``notices``: part
    → the text of its notice."""

    names: Mapping[str, str]
    texts: Mapping[str, str]
    notices: Mapping[str, str]


def find(source: Source, base: Path | None, given: str | None) -> Licences:
    """The licences of a source's parts; ``given`` names that of what is exported itself, or is a file with its text.

    Raises ConfigError for a name that is none.
    """
    own = "adapter" if source.kind in ("peft", "run") else "model"
    names, texts, notices = dict(_names(source, base)), {}, {}
    places = {own: source.path, "base": base} if source.kind == "peft" else {own: source.path}
    for part, place in places.items():
        if place is not None and place.is_dir():
            if text := _beside(place, LICENCE_FILE):
                texts[part] = text
            if text := _beside(place, NOTICE_FILE):
                notices[part] = text
    if given is not None:
        names[own], text = _given(given)
        texts |= {own: text} if text else {}
    for part, name in names.items():
        if part not in texts and name.casefold() == "apache-2.0" and (text := apache()):
            texts[part] = text
    return Licences(names, texts, notices)


def _names(source: Source, base: Path | None) -> dict[str, str]:
    if source.kind == "run":
        from popi_export.bundle import licences

        return licences(source.run)
    if source.kind == "peft":
        return {"base": of_place(base), "adapter": of_place(source.path)}
    return {"model": of_place(source.path)}


def of_place(place: Path | None) -> str:
    """The licence that a folder's model card or a GGUF's metadata names."""
    if place is None:
        return UNKNOWN
    if place.is_file():
        name = Gguf(place).fields.get("general.license")
        return name if isinstance(name, str) and SPDX.fullmatch(name) else UNKNOWN
    card = place / "README.md"
    if not card.is_file() or card.stat().st_size > 1 << 22:
        return UNKNOWN
    text = read_bytes(card, 1 << 22)[:MAX_CARD].decode("utf-8", "replace").replace("\r\n", "\n")
    parts = text.split("---\n", 2)
    found = FRONT.search(parts[1]) if text.startswith("---\n") and len(parts) == 3 else None
    return found[1] if found and found[1] != "other" else UNKNOWN


def _beside(folder: Path, name: re.Pattern[str]) -> str:
    """The text of the folder's file of such a name, or nothing."""
    found = sorted(p for p in folder.iterdir() if name.fullmatch(p.name) and p.is_file())
    return read_bytes(found[0], MAX_TEXT).decode("utf-8", "replace") if found else ""


def _given(given: str) -> tuple[str, str]:
    path = Path(given).expanduser()
    if path.is_file():
        return "see its text", read_bytes(path, MAX_TEXT).decode("utf-8", "replace")
    if not SPDX.fullmatch(given):
        raise ConfigError(f"the licence must be a name such as Apache-2.0, or a file with its text, not {given!r:.80}")
    return given, ""


def apache() -> str:
    """The text of the Apache License 2.0, which comes with popi-edge; empty where that is not to be found."""
    try:
        return distribution("popi-edge").read_text("licenses/LICENSE") or ""
    except PackageNotFoundError:
        return ""


def files(found: Licences, about: Mapping[str, Any]) -> dict[str, str]:
    """NOTICE and LICENSE-… by name. ``about`` has ``name``, ``version``, ``source`` and ``changes`` (a line each)."""
    lines = [f"{about['name']} {about['version']}", "", f"Made from {about['source']}.", ""]
    lines += [f"Licence of the {part}: {name}" + (f" (LICENSE-{part})" if part in found.texts else "")
              for part, name in found.names.items()]  # fmt: skip
    lines += ["", "Changed against the original:", *(f"- {line}" for line in about["changes"])]
    for part, text in found.notices.items():
        lines += ["", f"The notice of the {part}:", "", text.strip()]
    return {"NOTICE": "\n".join(lines) + "\n", **{f"LICENSE-{part}": text for part, text in found.texts.items()}}
