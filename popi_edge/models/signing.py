"""Signatures of bundles: Ed25519 over the manifest's exact bytes (which hold every file's size and hash).

A signature is one line in ``manifest.sig``, ``popi-bundle-1 ed25519:PUBLIC SIGNATURE`` (both base64), over a prefix of
our own and the manifest, so that one made for anything else never passes for a bundle's. Not covered: expiry,
revocation, who a key belongs to, the age of what was signed (an old version is validly signed too); private keys are
not encrypted, only kept from other users of the device (mode 0600, which Windows does not have).
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from popi_edge.errors import ConfigError, ModelError
from popi_edge.files import read_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "manifest.sig"
MAX_SIGNATURE = 1_024
MAX_KEY_FILE = 4_096
PREFIX = b"popi-edge bundle manifest, version 1\0"
KEY = re.compile(r"ed25519:([A-Za-z0-9+/]{43}=)")
LINE = re.compile(rb"popi-bundle-1 (ed25519:[A-Za-z0-9+/]{43}=) ([A-Za-z0-9+/]{86}==)\n")


def _bytes(text: str) -> bytes | None:
    """The bytes of a base64 text, or None when it is not how they are written (spare bits set)."""
    value = base64.b64decode(text)
    return value if base64.b64encode(value).decode() == text else None


def is_key(text: object) -> bool:
    """Whether it is a public key as ``popi bundle keygen`` prints it: ``ed25519:`` and 32 bytes in base64."""
    found = KEY.fullmatch(text) if isinstance(text, str) else None
    return found is not None and _bytes(found[1]) is not None


def _text(private: Ed25519PrivateKey) -> str:
    return "ed25519:" + base64.b64encode(private.public_key().public_bytes_raw()).decode()


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a new file with that mode, or none. Raises ConfigError, also when it is there already."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; a key is never overwritten") from None
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot write the key {str(path)!r}: {getattr(e, 'strerror', None) or e}") from None
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    except OSError as e:
        path.unlink(missing_ok=True)
        raise ConfigError(f"cannot write the key {path}: {e.strerror}") from None


def new_key(path: Path) -> str:
    """Make a pair: the private key into ``path`` (PKCS 8, mode 0600), the public one into ``path``.pub; returns the
    public one. Raises ConfigError; nothing is overwritten, and there are both files afterwards or neither."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    data = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = _text(private)
    _create(path, data, 0o600)
    try:
        _create(path.with_name(path.name + ".pub"), f"{public}\n".encode(), 0o644)
    except ConfigError:
        path.unlink(missing_ok=True)
        raise
    return public


def read_private(path: Path) -> Ed25519PrivateKey:
    """A private key of ``new_key``. Raises ConfigError: others may read it, or it is none; never with its contents."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        data, mode = read_regular(path, MAX_KEY_FILE)
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot read the key {str(path)!r}: {getattr(e, 'strerror', None) or e}") from None
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path}: others may read this private key (mode {stat.S_IMODE(mode):o}); run: chmod 600")
    try:
        key = form.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an unencrypted Ed25519 private key; make one with: popi bundle keygen FILE")
    return key


def read_public(given: str) -> str:
    """A public key from its text, or from the file that holds it. Raises ConfigError."""
    if is_key(given):
        return given
    try:
        text = read_regular(Path(given).expanduser(), MAX_KEY_FILE)[0].decode("ascii", "replace").strip()
    except (OSError, ValueError, RuntimeError) as e:
        raise ConfigError(f"cannot read the key {given!r:.200}: {getattr(e, 'strerror', None) or e}") from None
    if not is_key(text):
        raise ConfigError(f"{given:.200}: holds no public key (one line, ed25519:…); 'popi bundle keygen' made a .pub")
    return text


def sign(manifest: bytes, private: Ed25519PrivateKey) -> bytes:
    """The signature's line for a manifest's exact bytes."""
    signature = base64.b64encode(private.sign(PREFIX + manifest)).decode()
    return f"popi-bundle-1 {_text(private)} {signature}\n".encode()


def signer(manifest: bytes, line: bytes, where: Path) -> str:
    """The public key that signed these bytes. Raises ModelError when the line is none or does not fit them."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = LINE.fullmatch(line)
    key = found[1].decode() if found else ""
    signature = _bytes(found[2].decode()) if found else None
    if signature is None or not is_key(key):
        raise ModelError(f"{where}: not a bundle's signature; not used")
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key.split(":")[1])).verify(signature, PREFIX + manifest)
    except (InvalidSignature, ValueError):
        raise ModelError(f"{where}: the signature is not one of this manifest; not used") from None
    return key


def insist(manifest: bytes, line: bytes | None, trusted: Sequence[str], where: Path) -> str | None:
    """The key that signed a manifest, or None where it is not signed and need not be (``trusted`` is empty).

    A signature that is there must fit, trusted keys or not. Raises ModelError; nothing but the line is parsed.
    """
    if line is None:
        if trusted:
            raise ModelError(f"{where.parent}: it is not signed, and only bundles of a trusted key are used; not read")
        return None
    key = LINE.fullmatch(line)
    if trusted and key is not None and key[1].decode() not in trusted:
        raise ModelError(f"{where}: signed by {key[1].decode()}, which is not a trusted key; not read")
    return signer(manifest, line, where)
