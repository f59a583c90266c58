"""A Hugging Face folder, read strictly: config.json key by key, and weights from safetensors files only.

Covered: llama, qwen2, qwen3 and gemma3 (text) as transformers 4 and 5 write them; float32, float16 and bfloat16;
several files with an index. Refused: pickles, remote code, quantized weights, any key or tensor that could change what
the model computes and that we do not know. No library but numpy reads the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ModelError
from popi_edge.models.precheck import LAYERS
from popi_export import safetensors_header
from popi_export.architectures import ACTIVATION, MODEL_TYPES, PERIOD, Config, Llama3Scaling, tensors
from popi_export.bounded import read_json

Array = NDArray[np.float32]
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_CONFIG, MAX_INDEX = 1 << 18, 1 << 22
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
         "max_position_embeddings")  # fmt: skip
READ = frozenset({
    *SIZES, "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "model_type", "rope_theta",
    "rope_scaling", "rope_parameters", "rope_local_base_freq", "sliding_window", "layer_types",
    "sliding_window_pattern", "_sliding_window_pattern", "query_pre_attn_scalar", "use_sliding_window",
})  # fmt: skip
OFF = frozenset({
    "attention_bias", "mlp_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention",
    "quantization_config", "auto_map", "rope_interleaved", "add_cross_attention", "is_encoder_decoder", "use_qk_norm",
    "moe_intermediate_size", "num_experts", "pruned_heads", "is_decoder", "cross_attention_hidden_size",
})  # fmt: skip
"""Keys that must be absent, null, false, empty or 0: they would switch something on that is not supported."""
HARMLESS = frozenset({
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "torch_dtype",
    "dtype", "transformers_version", "use_cache", "initializer_range", "attention_dropout", "hidden_dropout",
    "max_window_layers", "pretraining_tp", "_name_or_path", "_model_name_or_path", "_attn_implementation_autoset",
    "is_llama_config", "transformers.js_config", "cache_implementation", "output_attentions", "output_hidden_states",
    "return_dict", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "task_specific_params",
    "tokenizer_class", "finetuning_task", "prefix", "decoder_start_token_id", "torchscript", "unsloth_version",
    "unsloth_fixed", "begin_suppress_tokens", "suppress_tokens", "hidden_act", "hidden_activation", "use_mrope",
})  # fmt: skip
"""Keys that change nothing about the logits of a text model in inference."""
ODD_LAYERS = 62
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack")


def read_config(folder: Path) -> Config:
    """The sizes in a folder's config.json. Raises ModelError for what is missing, odd or unknown."""
    return parse_config(read_json(folder / CONFIG, MAX_CONFIG), folder / CONFIG)


def parse_config(value: Mapping[str, Any], path: Path) -> Config:
    """The sizes in a config's ``value``; ``path`` only names it. Raises ModelError."""
    arch = _architecture(value, path)
    _refuse_unknown(value, path, arch)
    size = {key: _whole(value, key, path) for key in SIZES}
    heads, hidden = size["num_attention_heads"], size["hidden_size"]
    kv_heads = heads if value.get("num_key_value_heads") is None else _whole(value, "num_key_value_heads", path)
    head_dim = hidden // heads if value.get("head_dim") is None else _whole(value, "head_dim", path)
    if arch in ("qwen3", "gemma3") and value.get("head_dim") is None:
        raise ModelError(f"{path}: it lacks head_dim, which {arch} needs")
    if heads % kv_heads or head_dim % 2 or (arch == "qwen2" and head_dim * heads != hidden):
        raise ModelError(f"{path}: {heads} heads, {kv_heads} key-value heads of {head_dim} do not fit {hidden}")
    epsilon = _number(value, "rms_norm_eps", path)
    if not 0 < epsilon < 1:
        raise ModelError(f"{path}: rms_norm_eps is absurd ({epsilon:g})")
    tied = value.get("tie_word_embeddings", arch == "gemma3")
    if not isinstance(tied, bool):
        raise ModelError(f"{path}: tie_word_embeddings must be true or false")
    if (layers := size["num_hidden_layers"]) > LAYERS:
        raise ModelError(f"{path}: {layers:,} layers; at most {LAYERS} are possible")
    return Config(
        architecture=arch, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        ffn=size["intermediate_size"], context=size["max_position_embeddings"], vocabulary=size["vocab_size"],
        epsilon=epsilon, tied=tied, **_windows(value, path, arch, layers, head_dim), **_rope(value, path, arch),
    )  # fmt: skip


def _architecture(value: Mapping[str, Any], path: Path) -> str:
    if value.get("auto_map"):
        raise ModelError(f"{path}: it wants code from its own repository to be run (auto_map); that is never done")
    if value.get("quantization_config"):
        raise ModelError(f"{path}: its weights are quantized; export the model before it was quantized")
    kind = value.get("model_type")
    if kind == "gemma3":
        raise ModelError(f"{path}: a gemma3 with pictures; only its text model (gemma3_text) is supported")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise ModelError(f"{path}: model_type {kind!r:.60} is not one of {', '.join(MODEL_TYPES)}")
    arch = MODEL_TYPES[kind]
    named = value.get("architectures")
    if named is not None and not (isinstance(named, list) and all(str(n).endswith("ForCausalLM") for n in named)):
        raise ModelError(f"{path}: its architecture {named!r:.80} is not one for causal language modelling")
    acts = {value[key] for key in ("hidden_act", "hidden_activation") if isinstance(value.get(key), str)}
    if acts != {ACTIVATION[arch]}:
        raise ModelError(f"{path}: its activation is {', '.join(sorted(acts)) or 'not named'!r:.60}, not "
                         f"{ACTIVATION[arch]}")  # fmt: skip
    return arch


def _refuse_unknown(value: Mapping[str, Any], path: Path, arch: str) -> None:
    for key, given in value.items():
        if key in OFF and given:
            raise ModelError(f"{path}: {key} is {given!r:.40}, which is not supported")
        if key not in READ | OFF | HARMLESS and given not in (None, False):
            raise ModelError(f"{path}: the key {key!r:.60} is not known and could change what the model computes")
    if arch == "qwen2" and value.get("use_mrope"):
        raise ModelError(f"{path}: use_mrope is not supported")


def _whole(value: Mapping[str, Any], key: str, path: Path) -> int:
    found = value.get(key)
    if type(found) is not int or not 1 <= found <= 1 << 24:
        raise ModelError(f"{path}: {key} must be a whole number above 0, not {found!r:.40}")
    return found


def _number(value: Mapping[str, Any], key: str, path: Path) -> float:
    found = value.get(key)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found) or found <= 0:
        raise ModelError(f"{path}: {key} must be a number above 0, not {found!r:.40}")
    return float(found)


def _windows(value: Mapping[str, Any], path: Path, arch: str, layers: int, head_dim: int) -> dict[str, Any]:
    """Which layers see a window only; anything but whole attention is refused outside gemma3."""
    kinds = value.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise ModelError(f"{path}: layer_types must name the kind of each of the {layers} layers")
    if arch != "gemma3":
        if value.get("use_sliding_window") or any(k != "full_attention" for k in kinds or ()):
            raise ModelError(f"{path}: sliding-window attention is not supported for {arch}")
        if value.get("sliding_window") is not None and "use_sliding_window" not in value:
            raise ModelError(f"{path}: sliding-window attention is not supported for {arch}")
        return {}
    if layers == ODD_LAYERS:
        raise ModelError(f"{path}: llama.cpp takes every gemma3 of {layers} layers for the one of 27B; not supported")
    if (scale := _number(value, "query_pre_attn_scalar", path)) != head_dim:
        raise ModelError(f"{path}: query_pre_attn_scalar is {scale:g}, which llama.cpp takes to be head_dim {head_dim}")
    if kinds is None:
        period = value.get("sliding_window_pattern", value.get("_sliding_window_pattern", PERIOD))
        if type(period) is not int or period < 1:
            raise ModelError(f"{path}: sliding_window_pattern must be a whole number, not {period!r:.40}")
        local = tuple((i + 1) % period != 0 for i in range(layers))
    elif all(k in ("full_attention", "sliding_attention") for k in kinds):
        local = tuple(k == "sliding_attention" for k in kinds)
    else:
        raise ModelError(f"{path}: layer_types holds a kind that is not known")
    return {"local": local, "window": _whole(value, "sliding_window", path)}


def _rope(value: Mapping[str, Any], path: Path, arch: str) -> dict[str, Any]:
    """Rope's base and scaling, as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) write them."""
    new = value.get("rope_parameters")
    if new is None:
        if value.get("rope_theta") is None:
            raise ModelError(f"{path}: it names no rope_theta (nor rope_parameters), so its rope base is not known")
        out = {"rope_base": _number(value, "rope_theta", path)} | _scaling(value.get("rope_scaling"), path, arch)
        return out | ({"local_base": _number(value, "rope_local_base_freq", path)} if arch == "gemma3" else {})
    if not isinstance(new, dict):
        raise ModelError(f"{path}: rope_parameters must be an object")
    whole = new
    out = {}
    if arch == "gemma3":
        if set(new) != {"full_attention", "sliding_attention"} or not all(isinstance(v, dict) for v in new.values()):
            raise ModelError(f"{path}: rope_parameters must hold full_attention and sliding_attention")
        whole, near = new["full_attention"], new["sliding_attention"]
        if _scaling({k: v for k, v in near.items() if k != "rope_theta"}, path, arch):
            raise ModelError(f"{path}: rope scaling of sliding_attention is not supported")
        out["local_base"] = _number(near, "rope_theta", path)
    out["rope_base"] = _number(whole, "rope_theta", path)
    old = {"rope_theta": out["rope_base"], "rope_local_base_freq": out.get("local_base")}
    for key, now in old.items():
        if value.get(key) not in (None, now):
            raise ModelError(f"{path}: {key} is {value[key]!r:.40}, but rope_parameters says {now!r:.40}")
    return out | _scaling({k: v for k, v in whole.items() if k != "rope_theta"}, path, arch)


def _scaling(value: Any, path: Path, arch: str) -> dict[str, Any]:
    """Rope scaling: none, ``linear``, or ``llama3`` for llama."""
    if value is None or value == {}:
        return {}
    if not isinstance(value, dict):
        raise ModelError(f"{path}: rope_scaling must be an object")
    kinds = {value[k] for k in ("rope_type", "type") if isinstance(value.get(k), str)}
    numbers = {k: v for k, v in value.items() if k not in ("rope_type", "type")}
    if kinds == {"default"} and not {k: v for k, v in numbers.items() if v is not None}:
        return {}
    if kinds == {"linear"} and set(numbers) == {"factor"}:
        return {"linear": _number(value, "factor", path)}
    wanted = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if kinds == {"llama3"} and set(numbers) == wanted and arch == "llama":
        low, high = _number(value, "low_freq_factor", path), _number(value, "high_freq_factor", path)
        if low >= high:
            raise ModelError(f"{path}: low_freq_factor of rope scaling must be below high_freq_factor")
        old = _whole(value, "original_max_position_embeddings", path)
        return {"scaling": Llama3Scaling(_number(value, "factor", path), low, high, old)}
    raise ModelError(f"{path}: rope scaling {value!r:.120} is not supported (known: linear, and llama3 for llama)")


class Weights:
    """The tensors of a folder's safetensors files by name; each is read when asked for, none is kept.

    Raises ModelError where files, index and tensors do not fit each other.
    """

    def __init__(self, folder: Path, *, single: str = SINGLE, index: str = INDEX) -> None:
        self.folder = folder
        files = _files(folder, single, index)
        self._at: dict[str, tuple[Path, safetensors_header.Entry]] = {}
        for name, wanted in files.items():
            path = folder / name
            header = safetensors_header.read(path)
            if wanted is not None and wanted != set(header.tensors):
                odd = sorted(wanted ^ set(header.tensors))[0]
                raise ModelError(f"{folder / index}: {odd!r:.80} is not where it says")
            if twice := sorted(set(header.tensors) & set(self._at)):
                raise ModelError(f"{path}: tensor {twice[0]!r:.80} stands in two files")
            for tensor, entry in header.tensors.items():
                if entry.dtype not in ("F32", "F16", "BF16"):
                    raise ModelError(f"{path}: tensor {tensor!r:.80} is {entry.dtype}; known: F32, F16, BF16")
                self._at[tensor] = path, entry

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {name: entry.shape for name, (_, entry) in self._at.items()}

    def load(self, name: str) -> Array:
        """A tensor's numbers in float32. Raises ModelError where one is NaN or infinite."""
        path, entry = self._at[name]
        try:
            raw = np.fromfile(path, np.uint8, entry.end - entry.start, offset=entry.start)
        except OSError as e:
            raise ModelError(f"{path}: cannot be read: {e}") from None
        if len(raw) != entry.end - entry.start:
            raise ModelError(f"{path}: it has become shorter while it was read")
        value = _floats(raw, entry)
        if not np.isfinite(value).all():
            raise ModelError(f"{path}: tensor {name!r:.80} holds a value that is not finite (NaN or infinite)")
        return value


def _floats(raw: NDArray[np.uint8], entry: safetensors_header.Entry) -> Array:
    if entry.dtype == "BF16":
        value = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        value = raw.view("<f4" if entry.dtype == "F32" else "<f2").astype(np.float32, copy=False)
    return value.reshape(entry.shape)


def _files(folder: Path, single: str, index: str) -> dict[str, set[str] | None]:
    """The files that hold the weights; for each the tensors that the index puts there."""
    has = [(folder / name).exists() for name in (single, index)]
    if all(has):
        raise ModelError(f"{folder}: both {single} and {index} are there; which is meant?")
    if has[0]:
        return {single: None}
    if not has[1]:
        pickles = sorted(p.name for kind in PICKLES for p in folder.glob(kind))
        more = f" ({pickles[0]!r:.60} is a pickle or the like, which is never read)" if pickles else ""
        raise ModelError(f"{folder}: it has no {single}{more}")
    where = read_json(folder / index, MAX_INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ModelError(f"{folder / index}: it has no weight_map")
    out: dict[str, set[str] | None] = {}
    for tensor, name in where.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise ModelError(f"{folder / index}: {name!r:.80} is no safetensors file of the folder")
        found = out.setdefault(name, set())
        assert found is not None
        found.add(tensor)
    return out


def check(config: Config, weights: Weights) -> None:
    """Raises ModelError unless the folder holds just the tensors that its config implies, in their shapes.

    A tied model's ``lm_head.weight`` may be there as long as it is the embedding.
    """
    wanted, found = dict(tensors(config)), weights.shapes
    head, rows = "lm_head.weight", "model.embed_tokens.weight"
    for name, shape in wanted.items():
        if name not in found:
            hint = " (tie_word_embeddings is false)" if name == head else ""
            raise ModelError(f"{weights.folder}: the tensor {name} is missing{hint}")
        if found[name] != shape:
            raise ModelError(f"{weights.folder}: {name} has the shape {list(found[name])!s:.60}, not {list(shape)}")
    for name in found:
        if name == head and config.tied:
            if found[head] != found[rows] or not np.array_equal(weights.load(head), weights.load(rows)):
                raise ModelError(f"{weights.folder}: tie_word_embeddings is true, but {head} is not the embedding")
        elif name not in wanted:
            raise ModelError(f"{weights.folder}: the tensor {name!r:.80} is not one of a {config.architecture} model")
