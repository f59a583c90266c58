"""The exported ONNX files in a headless Chromium against Python on the same files.

python -m bench.onnx_browser MODEL.onnx [ADAPTER.gguf BASE.gguf] --modules NODE_MODULES, with tokenizer.json,
tokenizer_config.json and config.json beside the model: by onnxruntime-web on WebAssembly and on WebGPU (where there is
no GPU, Chromium's own in software), and by transformers.js. A server on loopback gives the page the model and npm's
packages; what is not installed is listed under ``not_covered``. Not covered in any case: other browsers, a real GPU.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import show
from bench.onnx_javascript import (
    TEXT,
    Arrays,
    adapter_arrays,
    alike,
    beside,
    in_python,
    read_ids,
    refuse_missing,
)
from popi_edge.cli.common import at_least, launch

RUNTIMES = {"wasm": "onnxruntime-web", "webgpu": "onnxruntime-web", "transformers": "@huggingface/transformers"}
"""What a page runs → the npm package that it is in."""
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}
PAGE = """<!doctype html><meta charset="utf-8"><title>popi</title>
<script type="importmap">{{"imports": {imports}}}</script>
<script type="module" src="/onnx_browser.mjs"></script>
"""
OFFLINE = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip
SOFTWARE_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
PATIENCE = 300.0
"""Seconds that a page may take."""


def chromium() -> str | None:
    """The browser's program, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing(runtime: str, modules: Path) -> str | None:
    """Why a runtime cannot be tried, or None."""
    if chromium() is None:
        return f"{runtime}: there is no Chromium"
    return None if (modules / RUNTIMES[runtime]).is_dir() else f"{runtime}: {RUNTIMES[runtime]} is not installed"


def imports(modules: Path) -> dict[str, str]:
    """Where a page finds the packages that transformers.js imports by name: its own copies, if it has any."""
    own = f"{RUNTIMES['transformers']}/node_modules/"
    files = {"onnxruntime-web/webgpu": "onnxruntime-web/dist/ort.webgpu.min.mjs",
             "onnxruntime-common": "onnxruntime-common/dist/esm/index.js"}  # fmt: skip
    return {name: f"/modules/{own if (modules / own / file).exists() else ''}{file}" for name, file in files.items()}


class Page(ThreadingHTTPServer):
    """Serves one job to one page, on loopback. ``said`` and ``logits``: what the page sends back."""

    daemon_threads = True

    def __init__(self, model: Path, modules: Path, job: Mapping[str, Any], adapter: Arrays) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.roots = {"model": model.parent, "modules": modules, "": Path(__file__).parent}
        page = PAGE.format(imports=json.dumps(imports(modules)))
        self.texts = {"/": page.encode(), "/job.json": json.dumps(job).encode()}
        self.texts |= {f"/adapter/{n}": np.ascontiguousarray(a, np.float32).tobytes() for n, a in adapter.items()}
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()
        self.logits = b""

    def file(self, path: str) -> Path | None:
        """The file at a path of a URL, or None: nothing outside the three folders."""
        first, _, rest = path.removeprefix("/").partition("/")
        root = (self.roots[first] if rest and first in self.roots else self.roots[""]).resolve()
        found = (root / (rest if rest else first)).resolve()
        return found if found.is_relative_to(root) and found.is_file() else None


class _Handler(BaseHTTPRequestHandler):
    server: Page

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in self.server.texts:
            self._send(200, "text/html" if path == "/" else "application/octet-stream", self.server.texts[path])
        elif (file := self.server.file(path)) is not None:
            self._send(200, TYPES.get(file.suffix, "application/octet-stream"), file.read_bytes())
        else:
            self._send(404, "text/plain", b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/logits":
            self.server.logits = body
        else:
            self.server.said.put(json.loads(body))
        self._send(200, "text/plain", b"")

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the page says what it has to say."""


@contextmanager
def _browser(url: str, runtime: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="popi-chromium-", ignore_cleanup_errors=True) as profile:
        flags = [*OFFLINE, *(SOFTWARE_GPU if runtime == "webgpu" else ("--disable-gpu",))]
        command = [str(chromium()), *flags, f"--user-data-dir={profile}", url]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def in_browser(
    runtime: str, modules: Path, model: Path, ids: Sequence[int], text: str, steps: int, adapter: Arrays
) -> tuple[dict[str, Any], bytes]:
    """What the page said, and the last logits of every step as float32 [steps, V] (none by transformers.js).

    Raises RuntimeError with what the page said went wrong, or that it said nothing within ``PATIENCE``.
    """
    job = {"runtime": runtime, "file": model.name, "ids": list(ids), "text": text, "steps": steps,
           "data": model.with_name(f"{model.name}.data").exists(),
           "adapter": {name: value.shape for name, value in adapter.items()}}  # fmt: skip
    with Page(model.resolve(), modules.resolve(), job, adapter) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        try:
            with _browser(f"http://127.0.0.1:{page.server_address[1]}/", runtime):
                said = page.said.get(timeout=PATIENCE)
        except queue.Empty:
            raise RuntimeError(f"the page said nothing within {PATIENCE:.0f} s") from None
        finally:
            page.shutdown()
        if "failed" in said:
            raise RuntimeError(str(said["failed"])[:300])
        return said, page.logits


def compare(
    model: Path, modules: Path, text: str, steps: int, adapter: Arrays, runtimes: Sequence[str] = tuple(RUNTIMES)
) -> dict[str, Any]:
    """Per runtime: its version, how many greedy tokens are Python's before the first that is not, and for those fed by
    names the largest difference of a logit up to there, as a part of the largest logit."""
    ids = read_ids(model, text)
    tokens, logits = in_python(model, ids, steps, adapter)
    out: dict[str, Any] = {"not_covered": []}
    for runtime in runtimes:
        own = runtime == "transformers"
        if why := (f"{runtime}: it has no place for an adapter" if own and adapter else missing(runtime, modules)):
            out["not_covered"].append(why)
            continue
        try:
            said, found = in_browser(runtime, modules, model, ids, text, steps, adapter)
        except RuntimeError as e:
            out[runtime] = {"failed": str(e)}
            continue
        theirs = said["tokens"]
        package = json.loads((modules / RUNTIMES[runtime] / "package.json").read_text("utf-8"))
        if own:
            told = {"tokens_alike": alike(tokens, theirs), "of": len(theirs), "ids_alike": said["ids"] == ids}
        else:
            told = beside(tokens, logits, theirs, np.frombuffer(found, np.float32).reshape(steps, -1))
        out[runtime] = {"version": package["version"]} | told
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", nargs="*", type=Path, help="ADAPTER.gguf BASE.gguf")
    parser.add_argument("--modules", type=Path, default=Path("node_modules"))
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--steps", type=at_least(1), default=24)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    refuse_missing(parser, args.model)
    adapter = adapter_arrays(*args.adapter) if args.adapter else {}
    result = compare(args.model, args.modules, TEXT, args.steps, adapter, args.runtimes)
    if (browser := chromium()) is not None:
        said = subprocess.run([browser, "--version"], capture_output=True, text=True).stdout
        result["browser"] = " ".join(said.split()[:2])
    result["model"] = args.model.name + (f" with {args.adapter[0].name}" if args.adapter else "")
    show(args, result)


if __name__ == "__main__":
    launch(main)
