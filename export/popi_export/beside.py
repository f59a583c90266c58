"""What other programs want beside a model: tokenizer.json, tokenizer_config.json, config.json, generation_config.json.

From a Hugging Face folder they are its own, less what names code or places; from a GGUF they are made from it. Not
covered: a tokenizer.json from a GGUF whose tokenizer is not a byte-level BPE.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import NORMALIZER, Tokenizer
from popi_export import hf, vocabulary
from popi_export.architectures import ACTIVATION, MODEL_TYPES, Config
from popi_export.bounded import MANY, read_bytes, read_json
from popi_export.source import Source

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
           "gemma3": "Gemma3ForCausalLM"}  # fmt: skip
LEFT_OUT = ("auto_map", "_name_or_path", "_model_name_or_path", "name_or_path", "tokenizer_file", "vocab_file",
            "special_tokens_map_file")  # fmt: skip
KEY = "tokenizer.ggml."


def files(source: Source, model: Gguf) -> dict[str, bytes]:
    """Each file's bytes by name; ``model`` is the source's float GGUF. Raises ModelError."""
    ends = end_ids(model)
    generation = {"eos_token_id": ends, **{k: v for k, v in special(model).items() if k.startswith(("bos", "pad"))}}
    return {
        vocabulary.TOKENIZER: _tokenizer(source, model),
        vocabulary.SETTINGS: dump(_settings(source, model)),
        hf.CONFIG: dump(_config(source, model) | {"eos_token_id": ends}),
        "generation_config.json": dump(generation),
    }


def dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def end_ids(model: Gguf) -> list[int]:
    """The tokens that end a reply, the first the model's own."""
    found = [model.fields.get(f"{KEY}{name}_token_id") for name in ("eos", "eot")]
    return list(dict.fromkeys(int(i) for i in found if i is not None))


def special(model: Gguf) -> dict[str, int]:
    """``bos_token_id`` and so on, as far as the file names them."""
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    found = {f"{short}_token_id": model.fields.get(f"{KEY}{name}_token_id") for name, short in names.items()}
    return {key: int(value) for key, value in found.items() if value is not None}


def _tokenizer(source: Source, model: Gguf) -> bytes:
    if source.folder is not None:
        return read_bytes(source.folder / vocabulary.TOKENIZER, vocabulary.MAX_TOKENIZER)
    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import normalizers, processors

    try:
        made = HfTokenizer.from_str(Tokenizer(model)._hf.to_str())
    except ModelError as e:
        raise ModelError(f"{e}; without a {vocabulary.TOKENIZER} there is no ONNX: export the model's folder") from None
    if model.fields.get(NORMALIZER) == "NFC":
        made.normalizer = normalizers.NFC()
    level = processors.ByteLevel(trim_offsets=False)
    bos = model.fields.get(f"{KEY}bos_token_id")
    if model.fields.get(f"{KEY}add_bos_token") is True and bos is not None:
        token = model.fields[f"{KEY}tokens"][bos]
        first = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, int(bos))])
        made.post_processor = processors.Sequence([level, first])
    else:
        made.post_processor = level
    text: str = made.to_str()
    return text.encode()


def _settings(source: Source, model: Gguf) -> dict[str, Any]:
    """tokenizer_config.json, the chat template inside it."""
    template = model.need("tokenizer.chat_template", str)
    if source.folder is not None and (source.folder / vocabulary.SETTINGS).exists():
        most = MANY + source.config.vocabulary
        own = read_json(source.folder / vocabulary.SETTINGS, vocabulary.MAX_SETTINGS, most=most)
        return {k: v for k, v in own.items() if k not in LEFT_OUT} | {"chat_template": template}
    tokens = model.need(f"{KEY}tokens", list)
    named = {key.removesuffix("_id"): tokens[i] for key, i in special(model).items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", **named, "model_max_length": source.config.context,
        "clean_up_tokenization_spaces": False, "chat_template": template,
    }  # fmt: skip


def _config(source: Source, model: Gguf) -> dict[str, Any]:
    """config.json, as transformers 4 writes it."""
    if source.folder is not None:
        own = read_json(source.folder / hf.CONFIG, hf.MAX_CONFIG)
        return {k: v for k, v in own.items() if k not in LEFT_OUT}
    return config_json(source.config) | special(model)


def config_json(c: Config) -> dict[str, Any]:
    """A config.json's values for a model's sizes, without its tokens."""
    kind = next(k for k, v in MODEL_TYPES.items() if v == c.architecture)
    act = "hidden_activation" if c.architecture == "gemma3" else "hidden_act"
    out: dict[str, Any] = {
        "architectures": [CLASSES[c.architecture]], "model_type": kind, act: ACTIVATION[c.architecture],
        "hidden_size": c.hidden, "intermediate_size": c.ffn, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "max_position_embeddings": c.context, "vocab_size": c.vocabulary, "rms_norm_eps": c.epsilon,
        "rope_theta": c.rope_base, "tie_word_embeddings": c.tied, "torch_dtype": "float32", "use_cache": True,
    }  # fmt: skip
    if c.linear != 1.0:
        out["rope_scaling"] = {"rope_type": "linear", "factor": c.linear}
    if c.scaling is not None:
        s = c.scaling
        out["rope_scaling"] = {
            "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low, "high_freq_factor": s.high,
            "original_max_position_embeddings": s.old_context,
        }  # fmt: skip
    if c.architecture == "gemma3":
        kinds = ["sliding_attention" if local else "full_attention" for local in c.local]
        out |= {"sliding_window": c.window, "layer_types": kinds, "rope_local_base_freq": c.local_base,
                "query_pre_attn_scalar": c.head_dim}  # fmt: skip
    return out


def write(source: Source, model: Path, folder: Path) -> None:
    """Write them into a folder. Raises ModelError, OSError."""
    for name, data in files(source, Gguf(model)).items():
        (folder / name).write_bytes(data)
