"""What the tests of the ONNX export share: GGUF files of tiny models, torch on the very same weights, a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from popi_edge.models.gguf import Gguf
from popi_edge.models.names import hf_name
from popi_export import architectures, source
from popi_export.to_gguf import write_lora, write_model
from tests import tiny_hf

IDS = np.random.default_rng(0).integers(3, 400, 60).tolist()
"""Longer than the window of the tiny gemma3."""
FTYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7}
Floats = NDArray[np.float32]


def f32(folder: Path, path: Path) -> Path:
    write_model(path, source.read(folder), "F32")
    return path


def lora(folder: Path, path: Path, seed: int) -> tuple[Path, Any]:
    """A GGUF adapter in float32, and torch with the same adapter on the folder's model."""
    from peft import PeftModel

    made = tiny_hf.peft_adapter(path.with_suffix(""), folder, seed=seed)
    read = source.read(made, base=folder)
    [adapter] = read.adapters.values()
    write_lora(path, adapter, read.config, half=False)
    return path, PeftModel.from_pretrained(tiny_hf.load(folder), made).eval()


def quantized(path: Path, out: Path, kind: str) -> Path:
    """A GGUF quantized by llama.cpp."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[kind]
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), params) == 0
    return out


def torch_on(path: Path, folder: Path) -> Any:
    """The folder's torch model with the numbers that a GGUF holds, as the ``gguf`` package reads them."""
    config, model = architectures.config_of(Gguf(path)), tiny_hf.load(folder)
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        value = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        name = hf_name(tensor.name, config.architecture)
        state[name] = torch.from_numpy(np.array(architectures.from_gguf(tensor.name, value, config)))
    absent = model.load_state_dict(state, strict=False)
    assert not absent.unexpected_keys and set(absent.missing_keys) <= {"lm_head.weight"}
    return model


def torch_logits(model: Any, ids: Sequence[int] = IDS) -> Floats:
    with torch.no_grad():
        out: Floats = model(torch.tensor([list(ids)])).logits[0].numpy()
    return out


class Plain:
    """An exported model in ONNX Runtime, fed by its names."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def empty(self, batch: int = 1) -> dict[str, Floats]:
        return {i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32)
                for i in self.session.get_inputs() if i.name.startswith("past_key_values.")}  # fmt: skip

    def run(
        self, ids: Any, mask: Any, positions: Any, past: Mapping[str, Floats], adapter: Path | None = None,
        **more: Floats,
    ) -> tuple[Floats, dict[str, Floats]]:  # fmt: skip
        """Logits [b, n, V], and what goes in as the past of the next run."""
        run = ort.RunOptions()
        if adapter:
            lora = ort.LoraAdapter()  # must live until the run is over: its options do not keep it
            lora.Load(str(adapter))
            run.add_active_adapter(lora)
        feeds = {"input_ids": np.asarray(ids, np.int64), "attention_mask": np.asarray(mask, np.int64),
                 "position_ids": np.asarray(positions, np.int64), **past, **more}  # fmt: skip
        found = dict(zip(self.outputs, self.session.run(self.outputs, feeds, run), strict=True))
        return found["logits"], {name: found[name.replace("past_key_values", "present")] for name in past}

    def logits(
        self, ids: Sequence[int] = IDS, pieces: Sequence[int] = (), adapter: Path | None = None, **more: Floats
    ) -> Floats:
        """Of every position; the text goes in in ``pieces`` of so many tokens, what is left at once."""
        out, past, at = [], self.empty(), 0
        for n in [*pieces, len(ids) - sum(pieces)]:
            end = at + n
            one, past = self.run([ids[at:end]], np.ones((1, end)), [range(at, end)], past, adapter, **more)
            out.append(one[0])
            at = end
        return np.concatenate(out)


def far(got: Floats, want: Floats) -> float:
    """The largest difference, as a part of the largest logit."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def divergence(want: Floats, got: Floats) -> float:
    """Mean KL over positions, in nats."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (want, got))
    return float((p.exp() * (p - q)).sum(-1).mean())


def once(make: Callable[[Path], Any], path: Path) -> Path:
    """The path, made if it is not there yet."""
    if not path.exists():
        make(path)
    return path
