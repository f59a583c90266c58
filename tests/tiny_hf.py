"""Tiny random models as Hugging Face saves them: llama, qwen2, qwen3 and gemma3 with a tokenizer, and PEFT adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from popi_training.micro import TEMPLATE, world_texts
from tests.tiny import TEXT

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WINDOW = 16
"""Positions that a local layer of the tiny gemma3 sees."""
MORE = [
    "In 1999 we'll have 12,345 of them; I'VE said it'd be 3.14 or 2718281828.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\r\n\r\nПривет, мир! 日本語のテキスト。 😀😀",
    "def f(x):\n\treturn {x: [x**2 for _ in range(10)]}   # the end...\n\n\n",
] * 10


def _split(pattern: str) -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


def pre_tokenizer(kind: str) -> Any:
    """The pre-tokenizer that llama.cpp calls ``gpt-2``, ``smollm``, ``qwen2`` or ``llama-bpe``."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    kinds = {"gpt-2": level, "smollm": pre_tokenizers.Sequence([digits, level])}
    return kinds[kind] if kind in kinds else _split({"qwen2": QWEN2, "llama-bpe": LLAMA3}[kind])


def tokenizer(kind: str = "smollm", *, size: int = 480, bos: bool = False, texts: Sequence[str] = ()) -> Any:
    """A byte-level BPE trained on a few hundred lines and ``texts``; ``bos`` puts ``<|endoftext|>`` before a text. The
    kind ``gemma`` is one with ▁ for spaces."""
    if kind == "gemma":
        return _with_spaces(size, bos, [*TEXT, *MORE, *world_texts(), *texts])
    made = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    made.pre_tokenizer = pre_tokenizer(kind)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*TEXT, *MORE, *world_texts(), *texts], trainer)
    level = processors.ByteLevel(trim_offsets=False)
    if bos:
        start = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)])
        made.post_processor = processors.Sequence([level, start])
    else:
        made.post_processor = level
    return made


def _with_spaces(size: int, bos: bool, texts: Sequence[str]) -> Any:
    """A BPE as Gemma's: ▁ for spaces, tokens for bytes and for runs of spaces, every way to make a token a merge."""
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    words = [w for t in texts for w in re.sub(r"<[^ ]*>|\0", "", t).replace(" ", "\n▁").split("\n")]
    trained.train_from_iterator(words, trainer)
    learnt = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    runs = [*("▁" * n for n in range(2, 32)), *("\n" * n for n in range(1, 6))]
    pieces = [t for t, _ in learnt if t not in runs]
    tokens = [*SPECIAL, "<unk>", *runs, *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = [(t[:i], t[i:]) for t in sorted(runs, key=len) if "▁" in t for i in range(1, len(t))]
    merges += [(t[:i], t[i:]) for t in pieces for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in (*SPECIAL, "<unk>")])
    made.add_tokens([AddedToken(t, normalized=False, special=False) for t in runs])
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
        )
    return made


def _config(architecture: str, hidden: int, words: int, tied: bool) -> Any:
    import transformers as hf

    shape = {
        "vocab_size": words, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    match architecture:
        case "llama":
            return hf.LlamaConfig(**shape, rope_theta=50_000.0)
        case "qwen2":
            return hf.Qwen2Config(**shape, rope_theta=1_000_000.0)
        case "qwen3":
            return hf.Qwen3Config(**shape, rope_theta=1_000_000.0, head_dim=hidden // 2)
        case "gemma3":
            shape |= {"num_hidden_layers": 7, "head_dim": hidden // 2, "query_pre_attn_scalar": hidden // 2}
            return hf.Gemma3TextConfig(**shape, rope_theta=1_000_000.0, sliding_window=WINDOW)
    raise ValueError(architecture)


def model(config: Any, *, seed: int) -> Any:
    """The torch model of a config with random weights that make its logits depend on every tensor."""
    import torch
    import transformers as hf

    torch.manual_seed(seed)
    made = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    gemma = config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim == 2:
                p.copy_(torch.randn_like(p) * (2.0 / p.shape[1] ** 0.5))
            else:
                p.copy_(torch.randn_like(p) * 0.2 + (name.endswith("norm.weight") and not gemma))
        made.tie_weights()
    return made


def folder(
    path: Path, architecture: str, *, seed: int = 0, tied: bool = True, vocabulary: str = "smollm", hidden: int = 64,
    dtype: str = "float32", bos: bool = False, extra: int = 0, shard: str = "5GB", words: Any = None,
) -> Path:  # fmt: skip
    """A model's folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json with its chat template.

    ``hidden`` is 64, or 256 where K-quants matter; ``extra`` rows of the embedding have no token; ``shard`` is the
    largest size of one file (``50KB`` gives several and an index); ``words`` is a tokenizer to use instead.
    """
    import torch
    from transformers import PreTrainedTokenizerFast

    words = words or tokenizer(vocabulary, bos=bos)
    made = model(_config(architecture, hidden, words.get_vocab_size() + extra, tied), seed=seed)
    made.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=shard)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=SPECIAL[2], bos_token=SPECIAL[0], pad_token=SPECIAL[0],
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.save_pretrained(path, save_jinja_files=False)
    return path


def load(path: Path) -> Any:
    """The torch model of such a folder in float32, computed as plainly as can be."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def edit(path: Path, **changes: Any) -> Path:
    """Change keys of a JSON file; a value of ``...`` removes the key."""
    value = {k: v for k, v in (json.loads(path.read_text("utf-8")) | changes).items() if v is not ...}
    path.write_text(json.dumps(value), "utf-8")
    return path


def peft_adapter(path: Path, folder: Path, *, seed: int = 0, rank: int = 4, alpha: float = 8.0) -> Path:
    """A random PEFT LoRA adapter on every linear layer of a folder's model, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", bias="none")
    made = get_peft_model(load(folder), settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if ".lora_" in name:
                p.copy_(torch.randn_like(p) * (0.3 if ".lora_B." in name else p.shape[1] ** -0.5))
    made.save_pretrained(path)
    return path
