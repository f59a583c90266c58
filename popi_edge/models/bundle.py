"""Bundles: a manifest, and per role an adapter on a base. Read and verified before anything is loaded.

Covered: folders; sizes and SHA-256 of every file; a base by name or hash. Not covered yet: zips and signatures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi_edge.errors import ModelError
from popi_edge.models.bases import BASES, file_sha256, locate
from popi_edge.prompts import CONTRACT
from popi_edge.summarize import Decoding

if TYPE_CHECKING:
    from popi_edge.config import Settings
    from popi_edge.engines.base import Engine

FORMAT = 1
ROLES = ("infer", "generate")
DEFAULT = "popi-smol"
MAX_MANIFEST = 1 << 20
ZERO_SHOT = {"opening": "Prefers replies that are", "sentences": 1}
"""How an untrained model is made to write about the replies and not to repeat them."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. ``adapters`` maps a role to its adapter file; a role without one runs the untouched base."""

    name: str
    version: str
    model: Path
    adapters: Mapping[str, Path]
    manifest: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """What made a summary, in a word: bundle, version and the infer adapter's hash."""
        role = self.manifest["roles"].get("infer") or {}
        return f"{self.name}-{self.version}" + (f"-{role['sha256'][:8]}" if role else "-zero-shot")

    @property
    def decoding(self) -> Decoding:
        """How its summaries are decoded."""
        how = self.manifest.get("decoding", {})
        return Decoding(str(how.get("opening", "")), how.get("sentences"))

    def engine(self, name: str, *, threads: int | None = None) -> Engine:
        """Open an engine on the base with this bundle's adapters."""
        from popi_edge.engines.base import open_engine

        return open_engine(name, self.model, adapters=self.adapters, threads=threads)

    def adapter(self, role: str) -> str | None:
        """The adapter to activate for a role, or None."""
        return role if role in self.adapters else None


def _field(table: Any, key: str, kind: type, where: Path) -> Any:
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ModelError(f"{where}: {key} is missing or not {kind.__name__}")
    return value


def _adapters(folder: Path, roles: Mapping[str, Any], manifest: Path) -> dict[str, Path]:
    found = {}
    for role, entry in roles.items():
        if role not in ROLES:
            raise ModelError(f"{manifest}: unknown role {role!r:.40}")
        if entry is None:
            continue
        name = _field(entry, "file", str, manifest)
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise ModelError(f"{manifest}: the {role} adapter {name!r:.80} is not a file of this bundle")
        size = path.stat().st_size
        if size != _field(entry, "size", int, manifest):
            raise ModelError(f"{path}: {size:,} bytes where the manifest says {entry['size']:,}; damaged")
        if file_sha256(path) != _field(entry, "sha256", str, manifest):
            raise ModelError(f"{path}: its SHA-256 is not the manifest's; damaged")
        found[role] = path
    return found


def read_bundle(folder: Path, settings: Settings) -> Bundle:
    """Read and verify a bundle's folder. Raises ModelError naming file and fault."""
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise ModelError(f"{path}: too large")
        manifest = json.loads(path.read_bytes())
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: not JSON: {str(e)[:80]}") from None
    if _field(manifest, "format", int, path) != FORMAT:
        raise ModelError(f"{path}: format {manifest['format']}; this popi-edge reads format {FORMAT}")
    if _field(manifest, "prompt_contract", int, path) != CONTRACT:
        raise ModelError(f"{path}: prompt contract {manifest['prompt_contract']}; this popi-edge has {CONTRACT}")
    how = manifest.get("decoding", {})
    if not isinstance(how, dict) or not isinstance(how.get("opening", ""), str) or len(how.get("opening", "")) > 100:
        raise ModelError(f"{path}: decoding.opening is not a short text")
    if not isinstance(how.get("sentences"), (int, type(None))):
        raise ModelError(f"{path}: decoding.sentences is not a whole number")
    base = _field(manifest, "base", dict, path)
    name = _field(base, "name", str, path)
    if name not in BASES or BASES[name].sha256 != _field(base, "sha256", str, path):
        raise ModelError(f"{path}: made for another base ({name!r:.40}); known: {', '.join(BASES)}")
    adapters = _adapters(folder, _field(manifest, "roles", dict, path), path)
    model = locate(name, settings.models)
    return Bundle(
        _field(manifest, "name", str, path), _field(manifest, "version", str, path), model, adapters, manifest
    )


def open_bundle(name: str | Path | None, settings: Settings) -> Bundle:
    """A bundle by name or path, or any instruct GGUF, by path or as a base's name (zero-shot, under the same prompt
    contract). Raises ModelError."""
    name = str(name or settings.model)
    if name == DEFAULT:
        return read_bundle(Path(str(files("popi_edge.models").joinpath(DEFAULT))), settings)
    path = locate(name, settings.models) if name in BASES else Path(name).expanduser()
    if path.is_dir():
        return read_bundle(path, settings)
    if path.is_file():
        manifest = {"roles": {"infer": None, "generate": None}, "name": path.stem, "decoding": ZERO_SHOT}
        return Bundle(path.stem, "gguf", path, {}, manifest)
    raise ModelError(f"there is no bundle {name!r:.80}; give {DEFAULT}, a bundle's folder, a base's name or GGUF file")
