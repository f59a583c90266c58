"""The tokenizer that a GGUF describes, rebuilt with ``tokenizers`` so that it agrees with llama.cpp on every string.

Plain text never becomes a control token. Characters whose bytes the vocabulary lacks are removed first (llama.cpp
and ``tokenizers`` would treat them differently). Not covered: letters that Unicode 16 added, which llama.cpp does not
know to be letters; SentencePiece vocabularies.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {"qwen2": WORDS % r"\p{N}", "llama-bpe": WORDS % r"\p{N}{1,3}"}
"""The pre-tokenizers that are a regular expression: Qwen 2's takes digits one by one, Llama 3's up to three."""
PLAIN = ("smollm", "gpt-2", "default")
NORMALIZER = "popi.tokenizer.normalizer"
"""A key of ours: what the model's own tokenizer does to a text first (only NFC); llama.cpp does not know it."""


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte: character → byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain}
    extra = (b for b in range(256) if b not in set(plain))
    return table | {chr(256 + i): b for i, b in enumerate(extra)}


class Tokenizer:
    """Text ↔ ids. ``encode`` treats everything as text; ``control`` gives the id of a control token."""

    def __init__(self, gguf: Gguf) -> None:
        kind, pre = gguf.need("tokenizer.ggml.model", str), gguf.fields.get("tokenizer.ggml.pre")
        if kind != "gpt2" or pre not in (*PLAIN, *SPLITS):
            raise ModelError(f"{gguf.path}: its tokenizer ({kind}, {pre}) is not supported yet")
        self.tokens: list[str] = gguf.need("tokenizer.ggml.tokens", list)
        merges = gguf.need("tokenizer.ggml.merges", list)
        types = gguf.fields.get("tokenizer.ggml.token_type")
        vocab = {t: i for i, t in enumerate(self.tokens)}
        if len(vocab) != len(self.tokens) or (types is not None and len(types) != len(self.tokens)):
            raise ModelError(f"{gguf.path}: its vocabulary is inconsistent")
        self._types = [1] * len(vocab) if types is None else [int(t) for t in types]
        self._control = {t: i for t, i in vocab.items() if self._types[i] == CONTROL}
        try:
            pairs = [tuple(m.split(" ")) for m in merges]
            whole = pre == "llama-bpe"  # a word that is a token is taken whole, whatever the merges would make of it
            bpe = models.BPE(vocab, pairs, fuse_unk=False, byte_fallback=False, ignore_merges=whole)
            self._hf = HfTokenizer(bpe)
        except Exception as e:  # tokenizers raises bare Exception
            why = " ".join(str(e).split())[:120]
            raise ModelError(f"{gguf.path}: its merges do not fit its vocabulary: {why}") from None
        self._hf.pre_tokenizer = _pre_tokenizer(pre)
        self._hf.decoder = decoders.ByteLevel()
        self._hf.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in self._control])
        own = [t for t, i in vocab.items() if self._types[i] == USER_DEFINED]
        self._hf.add_tokens([AddedToken(t, normalized=False, special=False) for t in own])
        self._hf.encode_special_tokens = True
        self._normalizer = gguf.fields.get(NORMALIZER, "")
        if self._normalizer not in ("", "NFC"):
            raise ModelError(f"{gguf.path}: its normalizer {self._normalizer!r:.40} is not supported")
        self.chat_template: str = gguf.fields.get("tokenizer.chat_template", "")
        ends = {gguf.fields.get("tokenizer.ggml.eos_token_id"), gguf.fields.get("tokenizer.ggml.eot_token_id")}
        ends |= {self._control.get(name) for name in ("<|im_end|>", "<|endoftext|>")}
        self.eos_ids: tuple[int, ...] = tuple(sorted(int(e) for e in ends if e is not None))
        if not self.eos_ids:
            raise ModelError(f"{gguf.path}: its tokenizer names no end token")
        eos = gguf.fields.get("tokenizer.ggml.eos_token_id")
        self.eos = int(eos) if eos is not None else self.eos_ids[0]
        alphabet = byte_alphabet()
        present = {alphabet[t] for t in self.tokens if t in alphabet}
        self._missing = frozenset(set(range(256)) - present)

    def __len__(self) -> int:
        return len(self.tokens)

    def clean(self, text: str) -> str:
        """Text as the model's tokenizer normalizes it, without the characters that the vocabulary cannot spell."""
        if self._normalizer:
            text = unicodedata.normalize(self._normalizer, text)
        if not self._missing.intersection(text.encode("utf-8", "ignore")) and text.isascii():
            return text
        return "".join(c for c in text if not self._missing.intersection(c.encode("utf-8", "ignore")))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; control tokens in it stay text."""
        return list(self._hf.encode(self.clean(text), add_special_tokens=False).ids)

    def control(self, name: str) -> int | None:
        """The id of a control token such as ``<|im_start|>``, or None."""
        return self._control.get(name)

    @property
    def controls(self) -> Sequence[str]:
        """Names of all control tokens."""
        return tuple(self._control)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are left out, broken UTF-8 becomes U+FFFD."""
        return b"".join(b for b in (self.token_bytes[i] for i in ids) if b is not None).decode("utf-8", "replace")

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        """The bytes that each token decodes to; None for control tokens and placeholders."""
        alphabet = byte_alphabet()
        out: list[bytes | None] = []
        for token, kind in zip(self.tokens, self._types, strict=True):
            if kind in (CONTROL, UNUSED):
                out.append(None)
            else:
                plain = token.encode() if kind == USER_DEFINED else bytes(alphabet[c] for c in token if c in alphabet)
                out.append(plain)
        return out


def _pre_tokenizer(pre: str) -> Any:
    """How a text is split before the merges apply."""
    if pre in SPLITS:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated"), level])
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, level]) if pre == "smollm" else level
