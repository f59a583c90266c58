"""Both engines compute what torch computes: exactly on float weights, within rounding on the quantized base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popi_edge.engines.llama_cpp import LlamaCppEngine
from popi_edge.engines.onnx import OnnxEngine
from popi_training.base import dequantized
from tests import tiny as make

IDS = [7, 80, 200, 13, 13, 299, 45, 120, 270, 2, 260, 77] * 9


def open_exact(name: str, path: Path, adapters: dict[str, Path] | None = None) -> Any:
    if name == "onnx":
        return OnnxEngine(path, adapters=adapters or {}, threads=2)
    return LlamaCppEngine(path, adapters=adapters or {}, threads=2, exact=True)


def torch_logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return out


@pytest.mark.parametrize("engine", ["onnx", "llama_cpp"])
@pytest.mark.parametrize(("tied", "half"), [(True, False), (False, False), (True, True)])
def test_float_weights_give_torch_logits(engine: str, tied: bool, half: bool, tmp_path: Path) -> None:
    """Largest difference, relative to the largest logit: 2e-4; llama.cpp rounds activations at f16 weights: 5e-3."""
    model = make.llama(tmp_path / "m.gguf", seed=3, tied=tied, half=half)
    e = open_exact(engine, tmp_path / "m.gguf")
    want, got = torch_logits(model, IDS), e._feed(e.lane(None), IDS, len(IDS))
    assert np.abs(want - got).max() < (5e-3 if half and engine == "llama_cpp" else 2e-4) * np.abs(want).max()
    e.close()


@pytest.mark.parametrize("engine", ["onnx", "llama_cpp"])
@pytest.mark.parametrize("half", [True, False])
def test_one_adapter_file_a_role_serves_both_engines(
    engine: str, half: bool, tiny: tuple[Path, Any], tmp_path: Path
) -> None:
    """Tolerances as above: 3e-4 of the largest logit, 5e-3 where llama.cpp rounds activations at f16 adapters."""
    path, model = tiny
    files = {role: tmp_path / f"{role}.gguf" for role in ("infer", "generate")}
    layers = {role: make.adapter(file, model.config, seed=i, half=half) for i, (role, file) in enumerate(files.items())}
    want = {role: torch_logits(make.merged(model, layers[role]), IDS) for role in files}
    want_base = torch_logits(model, IDS)
    e = open_exact(engine, path, files)
    for role in ("infer", "generate", "infer"):  # in turn, on one loaded base
        got = e._feed(e.lane(role), IDS, len(IDS))
        tolerance = 5e-3 if half and engine == "llama_cpp" else 3e-4
        assert np.abs(want[role] - got).max() < tolerance * np.abs(want[role]).max()
        assert np.abs(want_base - got).max() > 0.1  # the adapter matters
    got = e._feed(e.lane(None), IDS, len(IDS))
    assert np.abs(want_base - got).max() < 2e-4 * np.abs(want_base).max()
    e.close()


PROSE = (
    "The garden was quiet in the early morning. She had planted beans along the fence, and a row of lettuce that "
    "the snails had found before anyone else. If you want to keep them out, she said, you have to get up earlier "
    "than they do, which is not hard, because a snail is never in a hurry. There are other ways, of course: copper "
    "tape, a ring of ash, a hungry duck. None of them works as well as a torch and a bucket, and none is as dull. "
)


@pytest.fixture(scope="module")
def reference(base: Path) -> tuple[list[int], np.ndarray]:
    ids = OnnxEngine(base, adapters={}).tokenizer.encode(PROSE)
    model = dequantized(base)
    return ids, torch_logits(model, ids)


def kl(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    p = torch.log_softmax(torch.from_numpy(p_logits).double(), -1)
    q = torch.log_softmax(torch.from_numpy(q_logits).double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("engine", ["onnx", "llama_cpp"])
def test_quantized_base_stays_close_to_torch(
    engine: str, base: Path, reference: tuple[list[int], np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    ids, want = reference
    e = OnnxEngine(base, adapters={}) if engine == "onnx" else LlamaCppEngine(base, adapters={})
    distance = kl(want, e._feed(e.lane(None), ids, len(ids)))
    with capsys.disabled():
        print(f"\nmean KL(torch fp32 || {engine}) over {len(ids)} positions of prose: {distance:.2e} nats")
    assert distance <= 5e-3
    e.close()


def test_level_0_of_the_same_graph_is_exact(base: Path, reference: tuple[list[int], np.ndarray]) -> None:
    ids, want = reference
    e = OnnxEngine(base, adapters={}, level=0)
    got = e._feed(e.lane(None), ids, len(ids))
    assert np.abs(want - got).max() < 2e-3
    assert (want.argmax(-1) == got.argmax(-1)).all()
