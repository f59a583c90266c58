"""Every runner gives the logits of the same weights, with an adapter and without, at once and token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popi_edge.errors import ConfigError, EngineError, ModelError
from popi_export import to_onnx
from popi_export.quantize import quantize
from popi_export.runners import EngineRunner, LlamaRunner, OnnxRunner, TorchRunner, open_runner
from tests import tiny as make
from tests import tiny_hf

IDS = [1, 40, 41, 300, 7, 7, 99, 250, 3, 120, 55, 61, 2, 340, 17, 200]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[Path, Any]) -> dict[str, Any]:
    """The tiny llama with an adapter, as GGUF and as ONNX with the adapter apart; torch's logits of both."""
    import torch

    folder = tmp_path_factory.mktemp("runners")
    path, model = tiny
    layers = make.adapter(folder / "infer.gguf", model.config, seed=3, half=False)  # as exact as the base
    files = to_onnx.export(path, folder, "fp32", adapters={"infer": folder / "infer.gguf"})
    with torch.no_grad():
        plain = model(torch.tensor([IDS])).logits[0].numpy()
        adapted = make.merged(model, layers)(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(plain - adapted).max() > 0.5
    return {"gguf": path, "adapter": folder / "infer.gguf", "onnx": files[0], "onnx_adapter": files[2],
            "plain": plain, "adapted": adapted}  # fmt: skip


def opened(made: dict[str, Any], engine: str, adapter: bool) -> Any:
    onnx = engine == "onnxruntime"
    found = made["onnx_adapter" if onnx else "adapter"] if adapter else None
    return open_runner(engine, made["onnx" if onnx else "gguf"], found, exact=True)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("engine", ["torch", "llama.cpp", "onnxruntime", "popi-onnx"])
def test_each_runner_gives_torchs_logits_at_once_and_token_by_token(
    made: dict[str, Any], engine: str, adapter: bool
) -> None:
    runner = opened(made, engine, adapter)
    wanted = made["adapted" if adapter else "plain"]
    assert runner.name == engine
    for _ in range(2):  # nothing is left of the first call
        found = runner.logits(IDS)
        assert found.dtype == np.float32 and found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 2e-3
    steps = [runner.step(IDS[:5]), *(runner.step([i]) for i in IDS[5:])]
    assert np.abs(np.array(steps) - wanted[4:]).max() < 2e-3
    runner.forget()
    assert np.abs(runner.step(IDS[:3]) - wanted[2]).max() < 2e-3
    runner.close()


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("engine", ["torch", "llama.cpp", "onnxruntime", "popi-onnx"])
def test_the_end_of_a_text_is_as_in_the_whole_whatever_was_read_before(
    made: dict[str, Any], engine: str, adapter: bool
) -> None:
    runner = opened(made, engine, adapter)
    other = [*IDS[:6], *reversed(IDS[6:])]
    wanted = {tuple(text): runner.logits(text) for text in (IDS, other)}
    for text, last in [(IDS, 5), (IDS, 5), (other, 10), (IDS, 10), (other, 3), (IDS, 1), (IDS, 16), (other, 15)] * 2:
        found = runner.tail(text, last)
        assert found.shape == (last, wanted[tuple(text)].shape[1])
        assert np.abs(found - wanted[tuple(text)][-last:]).max() < 2e-3
        if last == 3:
            assert np.abs(runner.logits(IDS) - wanted[tuple(IDS)]).max() < 2e-3
    runner.forget()
    assert np.abs(runner.step(IDS[:3]) - wanted[tuple(IDS)][2]).max() < 2e-3
    runner.close()


def test_a_folder_with_a_peft_adapter_is_what_peft_makes_of_it(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    folder = tiny_hf.folder(tmp_path / "qwen3", "qwen3")
    adapter = tiny_hf.peft_adapter(tmp_path / "lora", folder)
    plain = tiny_hf.load(folder)
    with torch.no_grad():
        wanted = [plain(torch.tensor([IDS])).logits[0].numpy()]
        wanted.append(PeftModel.from_pretrained(plain, str(adapter)).eval()(torch.tensor([IDS])).logits[0].numpy())
    for path, logits in zip((None, adapter), wanted, strict=True):
        runner = TorchRunner.folder(folder, path)
        assert np.abs(runner.logits(IDS) - logits).max() < 1e-4
        runner.close()
    with pytest.raises(ModelError, match="no such file"):
        TorchRunner.folder(folder, tmp_path / "none")


def test_quantized_files_run_and_differ_the_more_the_fewer_bits_they_have(made: dict[str, Any], tmp_path: Path) -> None:
    worst = []
    for kind in ("F16", "Q8_0", "Q4_0"):
        quantize(made["gguf"], tmp_path / kind, kind)
        runner = LlamaRunner(tmp_path / kind)
        worst.append(float(np.abs(runner.logits(IDS) - made["plain"]).max()))
        runner.close()
    assert 0 < worst[0] < worst[1] < worst[2]
    quantize(made["gguf"], tmp_path / "k", "Q6_K")  # falls back, to what torch reads too
    torch, native = TorchRunner.gguf(tmp_path / "k"), LlamaRunner(tmp_path / "k")
    assert np.abs(torch.logits(IDS) - native.logits(IDS)).max() < worst[1]


def test_what_is_no_model_or_no_engine_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk" * 20)
    for engine in ("torch", "llama.cpp", "onnxruntime", "popi-onnx"):
        with pytest.raises(ModelError):
            open_runner(engine, junk)
        with pytest.raises(ModelError):
            open_runner(engine, tmp_path / "none")
    with pytest.raises(ModelError):
        LlamaRunner(made["gguf"], junk)
    with pytest.raises(ModelError):
        OnnxRunner(made["onnx"], junk)
    with pytest.raises(ConfigError, match="no engine 'mlx'"):
        open_runner("mlx", junk)
    runner = LlamaRunner(made["gguf"])
    for ids in ([], [-1], [10**6]):
        with pytest.raises(EngineError):
            runner.logits(ids)
    runner.close()
    engine = EngineRunner("onnx", made["gguf"])
    assert engine.name == "popi-onnx"
    engine.close()
