"""``popi bundle``: keys, signatures, and whether a bundle or a model file is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from popi_edge.cli.common import App, common

if TYPE_CHECKING:
    from popi_edge.models.bundle import Verified


@click.group()
def bundle() -> None:
    """Sign bundles and verify them: nothing in one is loaded before its sizes, hashes and signature agree."""


@bundle.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@common
def keygen(app: App, file: Path) -> None:
    """Make a key pair: the private key into FILE (for its owner alone), the public one into FILE.pub."""
    from popi_edge.models.signing import new_key

    public = new_key(file)
    text = f'{public}\nThe private key is in {file}. Who trusts it: trusted_keys = ["{public}"] in config.toml'
    app.emit({"public_key": public, "private_file": str(file), "public_file": f"{file}.pub"}, text)


@bundle.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="The private key's file.")
@common
def sign(app: App, folder: Path, key: Path) -> None:
    """Sign the bundle's folder BUNDLE, once its files agree with its manifest."""
    from popi_edge.errors import ModelError
    from popi_edge.models.bundle import verified, write_signature
    from popi_edge.models.signing import read_private

    if not folder.is_dir():
        raise ModelError(f"{folder}: not a bundle's folder (to ship a zip, sign the folder first)")
    private = read_private(key)
    before = verified(folder, signed=False)
    write_signature(before, private)
    after = verified(folder)
    app.emit(_facts(folder, after), f"{folder}: {_what(after)}, signed by {after.signer}")


@bundle.command()
@click.argument("name", metavar="BUNDLE")
@click.option("--key", help="It must be signed by this public key: the key, or the file that holds it.")
@common
def verify(app: App, name: str, key: str | None) -> None:
    """Verify BUNDLE, a folder, a zip or the shipped one by its name: signature, sizes, hashes, headers. Loads nothing.

    Without --key the trusted_keys of config.toml decide, if there are any. A bare GGUF or ONNX file is checked too, as
    far as a file can be that nothing is said about.
    """
    from popi_edge.errors import ModelError
    from popi_edge.models import archive
    from popi_edge.models.bundle import DEFAULT, shipped, verified
    from popi_edge.models.signing import read_public

    given = (read_public(key),) if key else ()
    trusted = given or app.settings.trusted_keys
    path = Path(name).expanduser()
    if name == DEFAULT:
        _tell(app, name, verified(shipped(), given), given)
    elif path.is_dir():
        _tell(app, name, verified(path, trusted), trusted)
    elif not path.is_file():
        raise ModelError(f"there is no bundle {name!r:.80}; give a folder, a zip or a model file")
    elif archive.is_zip(path):
        with archive.unpacked(path, trusted) as folder:
            _tell(app, name, verified(folder, trusted), trusted)
    elif trusted:
        raise ModelError(f"{path}: a bare model is not signed, and only bundles of a trusted key are used; not read")
    else:
        _bare(app, path)


def _tell(app: App, name: str, found: Verified, trusted: tuple[str, ...]) -> None:
    from popi_edge.models.bundle import shipped

    if found.signer is not None:
        who = f"signed by {found.signer}, " + ("as asked for" if trusted else "whom nothing says to trust")
    elif found.folder == shipped():
        who = "not signed; trusted as part of the package"
    else:
        who = "not signed (hashes show damage, not who made it)"
    app.emit(_facts(name, found) | {"trusted": found.signer in trusted}, f"{name}: {_what(found)}, {who}")


def _bare(app: App, path: Path) -> None:
    from popi_edge.models import precheck

    facts = precheck.any_file(path)
    counted = ", ".join(f"{value} {key}" for key, value in facts.items() if isinstance(value, int))
    note = "; popi runs GGUF models only" if str(facts["kind"]).startswith("ONNX") else ""
    app.emit({"file": str(path), **facts}, f"{path}: a well-formed {facts['kind']} ({counted}), not signed{note}")


def _what(found: Verified) -> str:
    files = len(found.contents.files)
    name, version = found.manifest["name"], found.manifest["version"]
    return f"{name} {version}, {files} file{'s' * (files != 1)} of {found.size:,} bytes as its manifest says"


def _facts(where: str | Path, found: Verified) -> dict[str, Any]:
    names = {role: path.name for role, path in found.adapters.items()}
    models = [{"file": m.entry.file, "quantization": m.quantization} for m in found.contents.models]
    about = {"name": found.manifest["name"], "version": found.manifest["version"]}
    facts = {"bundle": str(where), **about, "files": names, "bytes": found.size, "signed_by": found.signer}
    return facts | ({"models": models} if models else {})
