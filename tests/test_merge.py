"""An adapter merged into float32 weights computes what the adapter beside them computes, and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popi_edge.engines.llama_cpp import LlamaCppEngine
from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf
from popi_export.merge import merge
from tests import tiny as make

IDS = [7, 80, 200, 13, 13, 299, 45, 120]


@pytest.fixture(scope="module")
def pair(tiny: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """The adapter's and the merged model's file, and the adapter's layers."""
    folder = tmp_path_factory.mktemp("merged")
    layers = make.adapter(folder / "a.gguf", tiny[1].config, seed=3)
    assert merge(tiny[0], folder / "a.gguf", folder / "m.gguf") == len(layers)
    return folder / "a.gguf", folder / "m.gguf", layers


def logits(model: Path, adapters: dict[str, Path]) -> Any:
    e = LlamaCppEngine(model, adapters=adapters, threads=1, exact=True)
    out = e._feed(e.lane(next(iter(adapters), None)), IDS, len(IDS))
    e.close()
    return out


def test_it_computes_what_torch_computes_with_the_merged_weights(
    tiny: tuple[Path, Any], pair: tuple[Path, Path, Any]
) -> None:
    import torch

    adapter, whole, layers = pair
    with torch.no_grad():
        want = make.merged(tiny[1], layers)(torch.tensor([IDS])).logits[0].numpy()
    got = logits(whole, {})
    assert np.abs(want - got).max() < 2e-4 * np.abs(want).max()
    assert np.abs(want - logits(tiny[0], {})).max() > 0.1 * np.abs(want).max()  # the adapter matters
    assert np.abs(logits(tiny[0], {"a": adapter}) - got).max() < 5e-3 * np.abs(want).max()  # its activations at f16


def test_everything_else_stays(tiny: tuple[Path, Any], pair: tuple[Path, Path, Any]) -> None:
    before, after = Gguf(tiny[0]), Gguf(pair[1])
    assert list(before.types.items()) == list(after.types.items()) and list(before.tensors) == list(after.tensors)
    for key, value in before.fields.items():
        assert np.array_equal(value, after.fields[key]), key
    same = [n for n in before.tensors if np.array_equal(before.tensors[n].data, after.tensors[n].data)]
    assert {n for n in before.tensors if "norm" in n or "embd" in n} == set(same)


def test_what_does_not_fit_is_refused(tiny: tuple[Path, Any], pair: tuple[Path, Path, Any], tmp_path: Path) -> None:
    make.llama(tmp_path / "half.gguf", half=True)
    with pytest.raises(ModelError, match="float32 weights alone, not into F16"):
        merge(tmp_path / "half.gguf", pair[0], tmp_path / "out.gguf")
    with pytest.raises(ModelError, match="not a LoRA adapter"):
        merge(tiny[0], tiny[0], tmp_path / "out.gguf")
    make.adapter(tmp_path / "huge.gguf", tiny[1].config, seed=0, alpha=3e38, scale=90.0)
    with pytest.raises(ModelError, match="too large for float32"):
        merge(tiny[0], tmp_path / "huge.gguf", tmp_path / "out.gguf")
