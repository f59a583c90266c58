"""An OpenAI-compatible generator driven for real: llama.cpp's own server on loopback, with the base model."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import popi_edge as popi
from popi_edge.generators import registry
from popi_edge.models.bases import BASES, remember, stored

KEY = "sk-test-only"


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "llama_cpp.server", "--model", str(base), "--host", "127.0.0.1",
               "--port", str(port), "--n_ctx", "1024", "--n_threads", "1", "--api_key", KEY]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert child.poll() is None and time.monotonic() < deadline, "llama.cpp's server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait(20)


@pytest.mark.parametrize("stream", [False, True])
def test_the_summary_reaches_a_real_server_and_a_reply_comes_back(
    server: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    smol = BASES["smollm2-135m"]
    (tmp_path / "models").mkdir()
    shutil.copy(base, stored(smol, tmp_path / "models"))
    remember(smol, stored(smol, tmp_path / "models"))
    entry = registry.Entry(name="near", url=server, model="smol", key_env="TEST_KEY", max_tokens=24)
    registry.add(tmp_path, entry)
    with popi.Popi.open(home=tmp_path) as me:
        me.edit("Prefers short answers in plain words.")
        if stream:
            text = "".join(me.stream("What is rain?", generator="near"))
            record = me.egress.records()[0]
        else:
            answer = me.ask("What is rain?", generator="near")
            text, record = answer.text, me.egress.get(answer.egress_id)
        assert len(text.split()) > 3
        assert record.body is not None
        assert json.loads(record.body)["messages"][0]["content"].endswith("Prefers short answers in plain words.")
        assert KEY not in json.dumps(record.to_json())
        assert me.egress.verify().ok


def test_the_command_line_against_it(server: str, base: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"POPI_HOME": str(tmp_path / "h"), "TEST_KEY": KEY}
        return subprocess.run([sys.executable, "-m", "popi_edge", *words], env=environment, capture_output=True,
                              text=True)  # fmt: skip

    assert run("generator", "add", "near", "--url", server, "--model", "m", "--key-env", "TEST_KEY").returncode == 0
    refused = run("ask", "Hi", "--generator", "near")
    assert refused.returncode == 1 and "popi summary approve" in refused.stderr
    done = run("ask", "Say hello.", "--generator", "near", "--plain", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reply"]
