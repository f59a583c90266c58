"""A Source as torch and ``tokenizers`` compute it: what an export is compared with.

The model is built from the sizes that were read here, not by transformers from config.json: version 4 would read what
version 5 wrote with the wrong rope base and say nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from popi_edge.errors import ModelError
from popi_edge.models.names import gguf_name
from popi_edge.models.tokenizer import ENDS, OTHERS
from popi_export.architectures import ROPE_FACTORS, Config, from_gguf, rotary_heads
from popi_export.source import Source, dequantize
from popi_export.to_gguf import merged
from popi_export.vocabulary import TOKENIZER


def transformers_config(c: Config) -> Any:
    """The transformers config of such a model."""
    import transformers

    hf: Any = transformers
    shape: dict[str, Any] = {
        "vocab_size": c.vocabulary, "hidden_size": c.hidden, "intermediate_size": c.ffn, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "max_position_embeddings": c.context, "rms_norm_eps": c.epsilon, "rope_theta": c.rope_base,
        "tie_word_embeddings": c.tied, "use_cache": True,
    }  # fmt: skip
    if c.linear != 1.0:
        shape["rope_scaling"] = {"rope_type": "linear", "factor": c.linear}
    if (s := c.scaling) is not None:
        shape["rope_scaling"] = {
            "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low, "high_freq_factor": s.high,
            "original_max_position_embeddings": s.old_context,
        }  # fmt: skip
    match c.architecture:
        case "llama":
            return hf.LlamaConfig(**shape)
        case "qwen2":
            return hf.Qwen2Config(**shape)
        case "qwen3":
            return hf.Qwen3Config(**shape)
        case "gemma3":
            kinds = ["sliding_attention" if x else "full_attention" for x in c.local]
            return hf.Gemma3TextConfig(
                **shape, layer_types=kinds, sliding_window=c.window, rope_local_base_freq=c.local_base,
                query_pre_attn_scalar=c.head_dim,
            )  # fmt: skip
    raise ModelError(f"{c.architecture!r:.40} is not known to torch here")


def torch_model(source: Source, adapter: str | None = None) -> Any:
    """The source's model in float32, in eval mode, with one of its adapters merged in where it is named.

    Raises ModelError. Not covered: a GGUF with llama 3's stretched rope, which keeps its factors only.
    """
    import torch
    import transformers
    from transformers.modeling_utils import no_init_weights

    auto: Any = transformers.AutoModelForCausalLM

    c = source.config
    if source.file is not None and ROPE_FACTORS in source.file.tensors:
        raise ModelError(f"{source.path}: its stretched rope cannot be computed from its factors; give the folder")
    with no_init_weights():
        model = auto.from_config(transformers_config(c), attn_implementation="eager").eval()
    model.tie_weights()
    added = merged(source.adapters[adapter], c) if adapter is not None else {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            target = gguf_name(name, c.architecture)
            if source.file is not None:
                value = from_gguf(target, dequantize(source.file.tensors[target]), c)
            else:
                assert source.weights is not None
                value = source.weights.load(name)
            parameter.copy_(torch.tensor(value))
            if target in added:
                delta = added[target]()
                rotary = rotary_heads(target, c) is not None
                parameter += torch.tensor(from_gguf(target, delta, c) if rotary else delta)
    return model


def tokenizer(folder: Path, *, heed: bool) -> Any:
    """A folder's own tokenizer. Control tokens in a text count where ``heed`` is true and stay text otherwise; those
    that llama.cpp makes control tokens by their names are control tokens here too.

    Raises ModelError.
    """
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as HfTokenizer

    try:
        found = HfTokenizer.from_file(str(folder / TOKENIZER))
    except Exception as e:  # tokenizers raises bare Exception
        raise ModelError(f"{folder / TOKENIZER}: {' '.join(str(e).split())[:120]}") from None
    own = {t.content for t in found.get_added_tokens_decoder().values()} & (ENDS | OTHERS)
    found.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in sorted(own)])
    found.encode_special_tokens = not heed
    return found
