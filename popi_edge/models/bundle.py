"""Bundles: a manifest, and per role an adapter on a base, or whole models. Read and verified before anything is loaded.

Covered: folders and zips of them; a signature over the manifest; sizes, SHA-256 and headers of every file; nothing in
the folder but what the manifest lists; a base by name and hash. Without ``trusted_keys`` hashes show damage only. Texts
and pictures of a whole-model bundle are hashed and never parsed; a large file is hashed again when anything about it
has changed (``hashed``). Not covered: ONNX models run in other programs, not here.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi_edge.config import Settings, make_folder, make_home
from popi_edge.errors import ConfigError, ModelError
from popi_edge.files import read_regular, whole_file
from popi_edge.models import archive
from popi_edge.models.bases import BASES, file_sha256, locate
from popi_edge.models.hashed import Hashed
from popi_edge.models.manifest import FORMAT, MANIFEST, MAX_MANIFEST, Contents, Model, contents, parse
from popi_edge.models.signing import MAX_SIGNATURE, SIGNATURE, insist, sign
from popi_edge.summarize import Decoding

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from popi_edge.engines.base import Engine

DEFAULT = "popi-smol"
MAX_FILES = 64
ZERO_SHOT: dict[str, Any] = {"opening": "Prefers replies that are", "sentences": 1}
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
        """What made a summary, in a word: bundle, version and the infer adapter's hash, or the whole model's."""
        one = self.manifest["roles"].get("infer") or next(
            (m for m in self.manifest.get("models", ()) if m["file"] == self.manifest["default"]), None
        )
        return f"{self.name}-{self.version}" + (f"-{one['sha256'][:8]}" if one else "-zero-shot")

    @property
    def decoding(self) -> Decoding:
        """How its summaries are decoded."""
        how = self.manifest.get("decoding", {})
        candidates = tuple(tuple(map(tuple, poles)) for poles in how.get("candidates", ()))
        return Decoding(str(how.get("opening", "")), how.get("sentences"), how.get("drafts", 1), candidates)

    def decoded(self, settings: Settings) -> Decoding:
        """The same as the settings want it. Raises ConfigError where that is sentences which the bundle lacks."""
        found = self.decoding
        if settings.known and not found.candidates:
            raise ConfigError(f"known: {self.name} has no sentences of its own to make a summary of")
        if settings.known is not None:
            found = replace(found, known=settings.known, candidates=found.candidates if settings.known else ())
        return replace(found, drafts=settings.drafts) if settings.drafts else found

    def engine(self, name: str, *, threads: int | None = None) -> Engine:
        """Open an engine on the base, or the whole model, with this bundle's adapters."""
        from popi_edge.engines.base import open_engine

        return open_engine(name, self.model, adapters=self.adapters, threads=threads)

    def adapter(self, role: str) -> str | None:
        """The adapter to activate for a role, or None."""
        return role if role in self.adapters else None


@dataclass(frozen=True)
class Verified:
    """A bundle whose files agree with its manifest; whether its base is on this device was not asked. ``signer`` is the
    key that signed it, None where it is not signed."""

    folder: Path
    manifest: Mapping[str, Any]
    contents: Contents
    signer: str | None

    @property
    def adapters(self) -> dict[str, Path]:
        """The adapter file of each role that has one."""
        return {role: self.folder / entry.file for role, entry in self.contents.adapters.items()}

    @property
    def size(self) -> int:
        """Bytes of the listed files."""
        return sum(entry.size for entry in self.contents.files.values())


def _listing(folder: Path) -> dict[str, int]:
    """Names and sizes of what is in the folder. Raises ModelError for anything but a few plain files."""
    found: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(found) == MAX_FILES:
                    raise ModelError(f"{folder}: more than {MAX_FILES} files")
                about = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(about.st_mode):
                    raise ModelError(f"{folder}: {entry.name!r:.80} is not a plain file (a link, a folder?); not used")
                found[entry.name] = about.st_size
    except OSError as e:
        raise ModelError(f"{folder}: {e.strerror}") from None
    return found


def _small(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)[0]
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror}") from None


def verified(
    folder: Path, trusted: Sequence[str] = (), *, signed: bool = True, sha256: Callable[[Path], str] | None = None
) -> Verified:
    """Verify a bundle's folder: signature, manifest, the list of files, their sizes, hashes and headers, in this order.

    With ``trusted`` keys one of them must have signed it, else nothing but ``manifest.sig`` is parsed. ``signed=False``
    does not look at the signature (it is about to be replaced). ``sha256`` gives a file's hash (by default it is made
    anew). Raises ModelError naming file and fault. Not covered: somebody who changes the files between this and their
    use.
    """
    from popi_edge.models import onnx_adapter_check, precheck

    there = _listing(folder)
    path = folder / MANIFEST
    data = _small(path, MAX_MANIFEST)
    line = _small(folder / SIGNATURE, MAX_SIGNATURE) if signed and SIGNATURE in there else None
    key = insist(data, line, trusted, folder / SIGNATURE)
    table = parse(data, path)
    listed = contents(table, path)
    for entry in listed.files.values():
        if entry.file not in there:
            raise ModelError(f"{folder}: {entry.file!r:.80} is missing, which its manifest lists; damaged")
        if there[entry.file] != entry.size:
            raise ModelError(
                f"{folder / entry.file}: {there[entry.file]:,} bytes where the manifest says {entry.size:,}; damaged"
            )
    if extra := sorted(there.keys() - listed.files.keys() - {MANIFEST, SIGNATURE}):
        raise ModelError(f"{folder}: {extra[0]!r:.80} is not in the manifest; not used")
    for name, entry in sorted(listed.files.items()):
        if (sha256 or file_sha256)(folder / name) != entry.sha256:
            raise ModelError(f"{folder / name}: its SHA-256 is not the manifest's; damaged")
    for name in sorted({entry.file for entry in listed.adapters.values()}):
        precheck.adapter(folder / name)
    for model in listed.models:
        _whole(folder / model.entry.file, model)
    for entry in listed.onnx_adapters:
        onnx_adapter_check.check(folder / entry.file)
    return Verified(folder, table, listed, key)


def _whole(path: Path, model: Model) -> None:
    """A whole model's header: its tensors' types, and where an ONNX model's weights are, as the manifest says."""
    from popi_edge.models import onnx_check, precheck

    types: Mapping[str, int]
    if model.format == "gguf":
        types = Counter(tensor.type for tensor in precheck.model(path).tensors.values())
    else:
        found = onnx_check.check(path)
        types, outside = found.types, {name for name, _, _ in found.external}
        if outside != {entry.file for entry in model.beside}:
            raise ModelError(f"{path}: its weights are in {sorted(outside)!s:.80}, which is not what the manifest says")
    if types != model.tensor_types:
        raise ModelError(f"{path}: its tensors are {dict(types)}, not {dict(model.tensor_types)!s:.80} as stated")


def write_signature(found: Verified, private: Ed25519PrivateKey) -> None:
    """Sign a verified bundle's manifest; ``manifest.sig`` may be read by whoever may read the manifest.

    Raises ModelError; an older signature stays then.
    """
    path = found.folder / SIGNATURE
    data, mode = _small(found.folder / MANIFEST, MAX_MANIFEST), (found.folder / MANIFEST).stat().st_mode
    try:
        with whole_file(path) as file:
            file.write(sign(data, private))
        path.chmod(stat.S_IMODE(mode))
    except OSError as e:
        raise ModelError(f"{path}: cannot be written: {e.strerror}") from None


def with_base(found: Verified, settings: Settings) -> Bundle:
    """The bundle on its base, or on the whole model in it. Raises ModelError when the base is not on this device, or
    where there is no model that popi runs."""
    if found.manifest["format"] == FORMAT:
        model = locate(found.manifest["base"]["name"], settings.models)
    elif found.contents.default is not None:
        model = found.folder / found.contents.default
    else:
        raise ModelError(f"{found.folder}: it holds ONNX models for other programs alone; popi runs GGUF models")
    return Bundle(found.manifest["name"], found.manifest["version"], model, found.adapters, found.manifest)


def read_bundle(folder: Path, settings: Settings) -> Bundle:
    """Verify a bundle's folder, under the user's ``trusted_keys``, and find its base. Raises ModelError."""
    return with_base(verified(folder, settings.trusted_keys, sha256=_hashed(settings).sha256), settings)


def _hashed(settings: Settings) -> Hashed:
    """Large files are hashed again only when they have changed since."""
    return Hashed(settings.home, file_sha256)


def kept(path: Path, settings: Settings) -> Verified:
    """A zip's bundle, unpacked into HOME/bundles under the zip's SHA-256: once for each zip, verified every time.

    Raises ModelError; nothing is kept then.
    """
    make_home(settings.home)
    place = make_folder(settings.home / "bundles")
    hashed, trusted = _hashed(settings), settings.trusted_keys
    folder = place / hashed.sha256(path)
    if folder.is_dir():
        try:
            return verified(folder, trusted, sha256=hashed.sha256)
        except ModelError:  # damaged since, or no longer trusted: what the zip holds decides
            shutil.rmtree(folder, ignore_errors=True)
    with archive.unpacked(path, trusted, beside=place) as draft:
        verified(draft, trusted)
        try:
            draft.rename(folder)
        except OSError as e:  # another process may have been faster
            if not folder.is_dir():
                raise ModelError(f"{folder}: cannot be written: {e.strerror}") from None
    return verified(folder, trusted)


def shipped() -> Path:
    """The folder of the bundle in the package: trusted as a part of the package, which whoever can change it can change
    too. Its sizes and hashes are checked like any other's, no signature is asked for."""
    return Path(str(files("popi_edge.models").joinpath(DEFAULT)))


def open_bundle(name: str | Path | None, settings: Settings) -> Bundle:
    """A bundle by name or path (folder or zip), or any instruct GGUF, by path or as a base's name (zero-shot, under the
    same prompt contract). Raises ModelError, also for what no trusted key signed where ``trusted_keys`` are set."""
    name = str(name or settings.model)
    if name == DEFAULT:
        return with_base(verified(shipped()), settings)
    path = locate(name, settings.models) if name in BASES else Path(name).expanduser()
    if path.is_dir():
        return read_bundle(path, settings)
    if not path.is_file():
        known = f"{DEFAULT}, a bundle's folder or zip, a base's name or GGUF file"
        raise ModelError(f"there is no bundle {name!r:.80}; give {known}")
    if archive.is_zip(path):
        return with_base(kept(path, settings), settings)
    if settings.trusted_keys and name not in BASES:
        raise ModelError(f"{path}: a bare model is not signed, and only bundles of a trusted key are used; not read")
    manifest = {"roles": {"infer": None, "generate": None}, "name": path.stem, "decoding": ZERO_SHOT}
    return Bundle(path.stem, "gguf", path, {}, manifest)
