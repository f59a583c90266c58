"""A base from a Hugging Face folder: model and tokenizer, safetensors only, no code from the folder, nothing fetched.

Covered: llama, qwen2, qwen3, gemma3 (text) with a byte-level or a SentencePiece-like BPE in ``tokenizer.json``.
Not covered: other architectures, quantized weights, export of what is trained on them (``popi export`` knows the bases
that devices have).
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from popi_edge.errors import ModelError
from popi_edge.models.bases import file_sha256
from popi_edge.models.tokenizer import CONTROL, Tokenizer
from popi_training.runfolder import is_number

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3_text")
SPACE = "▁"


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: not JSON: {str(e)[:80]}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not an object")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``. Raises ModelError: no such folder, another architecture, remote code, a rope
    written by transformers 5, which version 4 would read without a word and with the wrong base, no context length."""
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(f"{folder}: model_type {kind!r:.40}; known are {', '.join(ARCHITECTURES)}")
    if "auto_map" in config:
        raise ModelError(f"{folder}: it wants to run code of its own (auto_map); that is refused")
    if "rope_parameters" in config and "rope_theta" not in config:
        raise ModelError(f"{folder}: config.json is written by transformers 5 (rope_parameters without rope_theta)")
    context = config.get("max_position_embeddings")
    if type(context) is not int or context < 1:
        what = f"must be a whole number above 0, not {context!r:.40}"
        raise ModelError(f"{folder}: config.json: max_position_embeddings {what}")
    if not is_number(eps := config.get("rms_norm_eps", 0)):  # all of ARCHITECTURES have one
        raise ModelError(f"{folder}: config.json: rms_norm_eps must be a number, not {eps!r:.40}")
    return config


def load_model(folder: Path) -> Any:
    """The model in float32, in eval mode. Raises ModelError: no safetensors, weights that do not fit the config."""
    import torch
    from transformers import AutoModelForCausalLM

    read_config(folder)
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no .safetensors in it; other weights are not loaded")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as e:  # transformers and safetensors raise many kinds
        raise ModelError(f"{folder}: cannot be loaded: {type(e).__name__}: {str(e)[:120]}") from None
    model, told = loaded
    odd = [*told["missing_keys"], *told["unexpected_keys"], *(k[0] for k in told["mismatched_keys"])]
    if odd:
        raise ModelError(f"{folder}: its weights do not fit its config: {odd[0]} and {len(odd) - 1} more")
    return model.eval()


def folder_sha256(folder: Path) -> str:
    """A hash of all that is read of a folder: names and contents of config, tokenizer and weights. Raises ModelError
    naming a file that cannot be read."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja"))
    try:
        named = "\0".join(f"{p.name}:{file_sha256(p)}" for p in files)
    except OSError as e:
        raise ModelError(f"cannot read {e.filename}: {e.strerror}") from None
    return hashlib.sha256(named.encode()).hexdigest()


class FolderTokenizer(Tokenizer):
    """The runtime's tokenizer, read from a folder instead of a GGUF: plain text never becomes a control token, and
    every token's bytes are known."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError for a tokenizer that is no BPE or has no end token."""
        path = folder / "tokenizer.json"
        table = _json(path)
        model = table.get("model")
        kind = model.get("type") if isinstance(model, dict) else model
        if kind != "BPE":
            raise ModelError(f"{path}: its model is {kind!r:.40}; only BPE is known")
        try:
            self._hf = HfTokenizer.from_file(str(path))
        except Exception as e:  # tokenizers raises bare Exception
            raise ModelError(f"{path}: {str(e)[:120]}") from None
        self._hf.encode_special_tokens = True
        config = _json(folder / "tokenizer_config.json")
        self._control = {t["content"]: int(t["id"]) for t in table.get("added_tokens", ()) if t.get("special")}
        size = max([self._hf.get_vocab_size(with_added_tokens=True), *(i + 1 for i in self._control.values())])
        self.tokens = [self._hf.id_to_token(i) or "" for i in range(size)]
        self._types = [CONTROL if t in self._control else 1 for t in self.tokens]
        self._pieces, self._normalizer = '"ByteLevel"' not in json.dumps(table.get("decoder")), ""
        first = self._hf.encode("").ids
        self.bos = self.tokens[first[0]] if first else ""
        template = folder / "chat_template.jinja"
        apart = template.read_text("utf-8") if template.exists() else ""
        self.chat_template = str(config.get("chat_template") or apart)
        ends = {self._control.get(_name(config.get("eos_token")))}
        ends |= {self._control.get(n) for n in ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "<eos>")}
        self.eos_ids: tuple[int, ...] = tuple(sorted(i for i in ends if i is not None))
        if not self.eos_ids:
            raise ModelError(f"{folder}: its tokenizer names no end token")
        self._missing: frozenset[int] = frozenset()  # transformers keeps every character, whatever it becomes
        turn = [self._control[n] for n in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>") if n in self._control]
        self.eos = turn[0] if turn else self.eos_ids[0]

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        if not self._pieces:
            return super().token_bytes
        controls = set(self._control.values())
        return [None if i in controls else _spelt(token) for i, token in enumerate(self.tokens)]


def _spelt(token: str) -> bytes:
    """The bytes of a token of a vocabulary with ▁ for spaces and <0x..> for bytes."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


def _name(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
