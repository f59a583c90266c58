"""Bundles are signed and verified; what is not exactly what was signed is refused before anything of it is loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as some

from bench import _tamper as tamper
from bench import bundles as bench
from bench._tamper_zip import WAYS, zipped
from popi_edge import config
from popi_edge.errors import ConfigError, ModelError
from popi_edge.models import archive, bases, bundle, signing
from popi_edge.prompts import CONTRACT
from tests import tiny as make
from tests import tiny_training as small

Popi = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[Path, Any]) -> Iterator[Path]:
    """A data folder with a tiny base that popi knows by name."""
    home = tmp_path_factory.mktemp("known")
    (home / "models").mkdir()
    file = home / "models" / "tiny.gguf"
    shutil.copy(tiny[0], file)
    known = bases.Base(
        name="tiny", file=file.name, size=file.stat().st_size, sha256=bases.file_sha256(file), package="tiny",
        requirement="tiny==1.0", wheel_size=1, licence="CC0-1.0",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bases.BASES, "tiny", known)
        yield home


def a_bundle(folder: Path, model: Any, seed: int) -> Path:
    folder.mkdir()
    roles = {}
    for i, role in enumerate(("infer", "generate")):
        file = folder / f"{role}.gguf"
        make.adapter(file, model.config, seed=seed + i, rank=2)
        roles[role] = {"file": file.name, "size": file.stat().st_size, "sha256": bases.file_sha256(file)}
    base = {"name": "tiny", "sha256": bases.BASES["tiny"].sha256}
    table = {"format": 1, "name": f"b{seed}", "version": "1.0", "prompt_contract": CONTRACT, "base": base,
             "roles": roles}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(table, indent=1) + "\n")
    return folder


@pytest.fixture(scope="module")
def made(home: Path, tiny: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[tamper.Material, str]:
    """Two signed bundles, the keys, and the trusted public key."""
    folder = tmp_path_factory.mktemp("bundles")
    first, second = (a_bundle(folder / f"b{seed}", tiny[1], seed) for seed in (1, 5))
    return bench.material(folder, first, second)


@pytest.fixture
def strict(home: Path, made: tuple[tamper.Material, str]) -> config.Settings:
    return config.Settings(home, trusted_keys=(made[1],))


@pytest.fixture
def work(made: tuple[tamper.Material, str], tmp_path: Path) -> Path:
    """A copy of the signed bundle that may be changed."""
    shutil.copytree(made[0].folder, tmp_path / "x.popi")
    return tmp_path / "x.popi"


@pytest.fixture
def popi(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Popi:
    def call(*words: object) -> tuple[int, str, str]:
        return small.popi(monkeypatch, capsys, "bundle", *words, "--home", home)

    return call


def refused(done: tuple[int, str, str], *words: str) -> None:
    code, out, err = done
    assert (code, out) == (1, "") and err.startswith("popi: ") and err.count("\n") == 1, (code, out, err)
    for word in words:
        assert word in err, err


# tampered bundles --------------------------------------------------------------------------------------------------
def test_tampered_bundles_are_refused_before_anything_is_loaded(
    made: tuple[tamper.Material, str], strict: config.Settings, tmp_path: Path
) -> None:
    rows = bench.run(len(WAYS) + 5, 7, made[0], tmp_path, strict)
    assert {r["way"] for r in rows} == set(WAYS)
    assert [r for r in rows if not r["refused"]] == []
    kept = list((strict.home / "bundles").iterdir())
    want = {p.name: p.read_bytes() for p in made[0].folder.iterdir()}
    assert kept and all({p.name: p.read_bytes() for p in folder.iterdir()} == want for folder in kept)  # the untouched


def test_the_benchmark_can_fail(
    made: tuple[tamper.Material, str], strict: config.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that was not tampered with is not refused, and one whose adapters are read too early is reported."""
    ways = {"nothing": lambda r, m, at: None, "stripped_signature": tamper.flip_adapter}
    monkeypatch.setattr(bench, "WAYS", ways)
    rows = {r["way"]: r for r in bench.run(2, 0, made[0], tmp_path, strict)}
    assert not rows["nothing"]["refused"] and rows["nothing"]["why"] is None
    early = rows["stripped_signature"]
    assert not early["refused"] and "SHA-256" in early["why"] and early["opened"] == ["generate.gguf", "infer.gguf"]


def test_nothing_of_a_refused_zip_is_kept(
    made: tuple[tamper.Material, str], strict: config.Settings, work: Path, tmp_path: Path
) -> None:
    own = replace(strict, home=tmp_path / "home")
    shutil.copytree(strict.home, own.home, ignore=shutil.ignore_patterns("bundles"))
    tamper.other_adapter(random.Random(0), made[0], work)
    with pytest.raises(ModelError, match="SHA-256"):
        bundle.open_bundle(zipped(work), own)
    assert list((own.home / "bundles").iterdir()) == []


# signatures --------------------------------------------------------------------------------------------------------
P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P


def _point(data: bytes) -> tuple[int, int]:
    """RFC 8032, 5.1.3."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - square) % P == 0
    return (P - x if x & 1 != sign else x), y


def _add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    t = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + t, P - 2, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, P - 2, P)
    return x % P, y % P


def _times(n: int, point: tuple[int, int]) -> tuple[int, int]:
    out = (0, 1)
    while n:
        out = _add(out, point) if n & 1 else out
        point, n = _add(point, point), n >> 1
    return out


def test_the_signature_is_ed25519_over_the_prefix_and_the_manifest(made: tuple[tamper.Material, str]) -> None:
    """Against RFC 8032's equation, computed here: [S]B = R + [k]A."""
    folder = made[0].folder
    word, key, signature = (folder / "manifest.sig").read_text().split()
    assert (word, key) == ("popi-bundle-1", made[1])
    public, both = base64.b64decode(key.split(":")[1]), base64.b64decode(signature)
    message = b"popi-edge bundle manifest, version 1\0" + (folder / "manifest.json").read_bytes()
    k = int.from_bytes(hashlib.sha512(both[:32] + public + message).digest(), "little")
    base = _point(bytes([0x58] + [0x66] * 31))
    left = _times(int.from_bytes(both[32:], "little"), base)
    assert left == _add(_point(both[:32]), _times(k, _point(public)))


@settings(max_examples=200, deadline=None)
@given(data=some.data())
def test_any_other_line_or_manifest_is_refused(made: tuple[tamper.Material, str], data: some.DataObject) -> None:
    folder, where = made[0].folder, Path("x/manifest.sig")
    manifest, line = (folder / "manifest.json").read_bytes(), (folder / "manifest.sig").read_bytes()
    assert signing.insist(manifest, line, (made[1],), where) == made[1]
    which = data.draw(some.sampled_from(["line", "manifest"]))
    text = bytearray(line if which == "line" else manifest)
    at = data.draw(some.integers(0, len(text)))
    new = data.draw(some.binary(max_size=3))
    text[at : at + data.draw(some.integers(0, 3))] = new
    if bytes(text) in (line, manifest):
        return
    manifest, line = (manifest, bytes(text)) if which == "line" else (bytes(text), line)
    with pytest.raises(ModelError) as e:
        signing.insist(manifest, line, (), where)
    assert "\n" not in str(e.value)


@given(text=some.text(max_size=60) | some.binary(min_size=30, max_size=34).map(lambda b: base64.b64encode(b).decode()))
def test_a_key_is_32_bytes_written_one_way(text: str) -> None:
    want = False
    try:
        raw = base64.b64decode(text, validate=True)
        want = len(raw) == 32 and base64.b64encode(raw).decode() == text
    except ValueError:
        pass
    assert signing.is_key("ed25519:" + text) == want and not signing.is_key(text)


def test_keys_are_made_for_their_owner_alone_and_never_shown(popi: Popi, work: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        code, out, err = popi("keygen", tmp_path / "key")
    finally:
        os.umask(old)
    private = (tmp_path / "key").read_text()
    secret = private.splitlines()[1]
    public = (tmp_path / "key.pub").read_text().strip()
    assert code == 0 and err == "" and public in out and secret not in out
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    done = popi("sign", work, "--key", tmp_path / "key")
    assert done[0] == 0 and public in done[1] and secret not in done[1]
    assert secret.encode() not in b"".join(p.read_bytes() for p in work.iterdir())
    refused(popi("keygen", tmp_path / "key"), "there already")
    assert (tmp_path / "key").read_text() == private
    (tmp_path / "lost.pub").write_text("mine")
    refused(popi("keygen", tmp_path / "lost"), "lost.pub is there already")
    assert not (tmp_path / "lost").exists() and (tmp_path / "lost.pub").read_text() == "mine"
    refused(popi("keygen", tmp_path / "no" / "key"), "cannot write the key")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_may_read_is_refused(mode: int, popi: Popi, work: Path, tmp_path: Path) -> None:
    before = (work / "manifest.sig").read_bytes()
    popi("keygen", tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    refused(popi("sign", work, "--key", tmp_path / "key"), "others may read", "chmod 600")
    assert (work / "manifest.sig").read_bytes() == before


def test_what_is_no_key_is_refused(popi: Popi, work: Path, tmp_path: Path) -> None:
    pem, pkcs8, plain = form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    right = ed25519.Ed25519PrivateKey.generate()
    wrong = {
        "another kind": ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs8, plain),
        "encrypted": right.private_bytes(pem, pkcs8, form.BestAvailableEncryption(b"x")),
        "cut": right.private_bytes(pem, pkcs8, plain)[:60],
        "public": right.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo),
        "empty": b"",
        "long": b"x" * 5_000,
    }
    for name, data in wrong.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
        refused(popi("sign", work, "--key", tmp_path / name), name)
    os.mkfifo(tmp_path / "pipe", 0o600)
    refused(popi("sign", work, "--key", tmp_path / "pipe"), "not a plain file")
    for given_ in ("ed25519:short", tmp_path / "empty", tmp_path / "nowhere"):
        refused(popi("verify", work, "--key", given_), "key")


def test_sign_and_verify_by_the_command_line(popi: Popi, made: tuple[tamper.Material, str], work: Path) -> None:
    (work / "manifest.sig").unlink()
    (work / "manifest.json").chmod(0o644)
    code, out, _ = popi("verify", work)
    assert code == 0 and "not signed (hashes show damage" in out
    ours = made[0].folder.parent / "ours"
    refused(popi("verify", work, "--key", f"{ours}.pub"), "not signed", "not read")
    code, out, _ = popi("sign", work, "--key", ours, "--json")
    assert code == 0 and json.loads(out)["signed_by"] == made[1]
    assert stat.S_IMODE((work / "manifest.sig").stat().st_mode) == 0o644  # as the manifest may be read
    for key in (made[1], f"{ours}.pub"):
        code, out, _ = popi("verify", work, "--key", key, "--json")
        found = json.loads(out)
        assert code == 0 and found["trusted"] and found["signed_by"] == made[1]
        assert found["bytes"] == sum((work / f"{role}.gguf").stat().st_size for role in ("infer", "generate"))
    code, out, _ = popi("verify", zipped(work), "--key", made[1])
    assert code == 0 and f"signed by {made[1]}, as asked for" in out
    code, out, _ = popi("verify", work, "--json")
    assert code == 0 and not json.loads(out)["trusted"]
    foreign = signing.read_public(f"{made[0].folder.parent / 'foreign'}.pub")
    refused(popi("verify", work, "--key", foreign), "not a trusted key")
    refused(popi("sign", zipped(work), "--key", ours), "sign the folder")
    (work / "infer.gguf").write_bytes(b"x")
    refused(popi("sign", work, "--key", ours), "damaged")
    refused(popi("verify", work / "nowhere"), "there is no bundle")


def test_a_private_key_left_in_the_folder_is_not_signed_along(popi: Popi, work: Path) -> None:
    popi("keygen", work / "key")
    refused(popi("sign", work, "--key", work / "key"), "'key' is not in the manifest")


# trust -------------------------------------------------------------------------------------------------------------
def test_only_bundles_of_trusted_keys_open_where_there_are_any(
    made: tuple[tamper.Material, str], strict: config.Settings, work: Path, tmp_path: Path, tiny: tuple[Path, Any]
) -> None:
    plain = replace(strict, trusted_keys=())
    assert bundle.open_bundle(work, strict).identity == bundle.open_bundle(work, plain).identity
    assert bundle.open_bundle("tiny", strict).version == "gguf"  # a base by name is fixed by its hash in the package
    assert bundle.open_bundle(tiny[0], plain).adapters == {}
    with pytest.raises(ModelError, match="a bare model is not signed"):
        bundle.open_bundle(tiny[0], strict)
    (work / "manifest.sig").unlink()
    assert bundle.open_bundle(work, plain)
    for path in (work, zipped(work)):
        with pytest.raises(ModelError, match="not signed, and only bundles of a trusted key"):
            bundle.open_bundle(path, strict)
    assert bundle.verified(bundle.shipped()).signer is None  # trusted as part of the package, checked all the same


def test_a_signature_that_is_there_must_fit_also_where_none_is_required(
    made: tuple[tamper.Material, str], strict: config.Settings, work: Path
) -> None:
    plain = replace(strict, trusted_keys=())
    tamper.foreign_signature(random.Random(0), made[0], work)
    assert bundle.open_bundle(work, plain)
    for way in (tamper.replayed_signature, tamper.borrowed_key, tamper.cut_signature):
        way(random.Random(0), made[0], work)
        with pytest.raises(ModelError, match="signature"):
            bundle.open_bundle(work, plain)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('trusted_keys = []', "must be a list"), ('trusted_keys = 3', "must be a list"),
        ('trusted_keys = ""', "must be a list"), ('trusted_keys = ["x"]', "'x' is not a public key"),
        ("trusted_keys = [3]", "3 is not a public key"),
        (f'trusted_keys = ["ed25519:{"A" * 42}B="]', "is not a public key"),
    ],
)  # fmt: skip
def test_trusted_keys_that_make_no_sense_are_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=why) as e:
        config.load(tmp_path)
    assert "config.toml" in str(e.value) and "\n" not in str(e.value)


def test_trusted_keys_come_from_the_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tuple("ed25519:" + base64.b64encode(bytes([i]) * 32).decode() for i in (1, 2))
    assert config.load(tmp_path).trusted_keys == ()
    (tmp_path / "config.toml").write_text(f"trusted_keys = {list(keys)}")
    assert config.load(tmp_path).trusted_keys == keys
    monkeypatch.setenv("POPI_TRUSTED_KEYS", f"{keys[1]}, {keys[0]}")
    assert config.load(tmp_path).trusted_keys == keys[::-1]


# zips --------------------------------------------------------------------------------------------------------------
def test_a_zip_is_the_same_bundle_and_is_unpacked_once(
    made: tuple[tamper.Material, str], strict: config.Settings, work: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat.popi"
    with zipfile.ZipFile(flat, "w", zipfile.ZIP_DEFLATED) as out:
        for file in work.iterdir():
            out.write(file, file.name)
    want = bundle.open_bundle(work, strict)
    for path in (zipped(work), flat, zipped(work, deflated=True)):
        found = bundle.open_bundle(path, strict)
        assert found.identity == want.identity and found.manifest == want.manifest
        folder = strict.home / "bundles" / bases.file_sha256(path)
        assert found.adapters["infer"].parent == folder
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in work.iterdir()}
        before = (folder / "infer.gguf").stat().st_ino
        bundle.open_bundle(path, strict)
        assert (folder / "infer.gguf").stat().st_ino == before
        (folder / "infer.gguf").write_bytes(b"damaged since")
        assert bundle.open_bundle(path, strict).adapters["infer"].read_bytes() == (work / "infer.gguf").read_bytes()
    assert not list((strict.home / "bundles").glob(".*"))


def test_a_zip_with_any_bit_changed_is_refused_or_unpacks_to_the_same(
    made: tuple[tamper.Material, str], work: Path, tmp_path: Path
) -> None:
    """Dates and such may change; what comes out may not. Mostly bits of the directory at the end."""
    for deflated in (False, True):
        data = zipped(work, deflated=deflated).read_bytes()
        want = {p.name: p.read_bytes() for p in work.iterdir()}
        r, same = random.Random(5), 0
        tail = data.index(b"PK\x01\x02")
        for i in range(250):
            changed = bytearray(data)
            at = r.randrange(len(data)) if i % 4 == 0 else r.randrange(tail, len(data))
            changed[at] ^= 1 << r.randrange(8)
            path, into = tmp_path / "x.zip", tmp_path / "into"
            path.write_bytes(changed)
            shutil.rmtree(into, ignore_errors=True)
            into.mkdir()
            try:
                archive.unpack(path, into, (made[1],))
            except ModelError as e:
                assert "\n" not in str(e)
                continue
            same += 1
            assert {p.name: p.read_bytes() for p in into.iterdir()} == want
        assert 0 < same < 200


def test_verify_looks_at_bare_files_too(popi: Popi, tiny: tuple[Path, Any], work: Path, tmp_path: Path) -> None:
    code, out, _ = popi("verify", tiny[0], "--json")
    assert code == 0 and json.loads(out)["kind"] == "GGUF model"
    code, out, _ = popi("verify", work / "infer.gguf")
    assert code == 0 and "a well-formed GGUF adapter (56 tensors" in out
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny[0].read_bytes()[:-100])
    refused(popi("verify", cut), "beyond its end")
