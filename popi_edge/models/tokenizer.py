"""The tokenizer that a GGUF describes, rebuilt with ``tokenizers`` so that it agrees with llama.cpp on every string.

Plain text never becomes a control token. Characters whose bytes the vocabulary lacks are removed first (llama.cpp
and ``tokenizers`` would treat them differently). Not covered: letters that Unicode 16 added, which llama.cpp does not
know to be letters; SentencePiece vocabularies that put a space before a text (Llama 2's).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from popi_edge.errors import ModelError
from popi_edge.models import sentencepiece
from popi_edge.models.gguf import Gguf

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {"qwen2": WORDS % r"\p{N}", "llama-bpe": WORDS % r"\p{N}{1,3}"}
"""The pre-tokenizers that are a regular expression: Qwen 2's takes digits one by one, Llama 3's up to three."""
ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>",
    "<|eom_id|>", "<EOT>", "[EOS]",
})  # fmt: skip
OTHERS = frozenset({
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>",
    "<SUF>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>",
    "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
})  # fmt: skip
"""Added tokens that llama.cpp makes control tokens by their text, whatever a file says."""
END_NAMES = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>")
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

    bos: str = ""
    """The token that begins every text of the model; empty where none does."""

    def __init__(self, gguf: Gguf) -> None:
        """Raises ModelError for a kind of tokenizer that is not known, or one that is not whole."""
        kind, pre = gguf.need("tokenizer.ggml.model", str), gguf.fields.get("tokenizer.ggml.pre")
        self._pieces = kind == "llama" and gguf.fields.get("tokenizer.ggml.add_space_prefix") is False
        if not self._pieces and (kind != "gpt2" or pre not in (*PLAIN, *SPLITS)):
            raise ModelError(f"{gguf.path}: its tokenizer ({kind}, {pre}) is not supported yet")
        self.tokens: list[str] = gguf.need("tokenizer.ggml.tokens", list)
        types = gguf.fields.get("tokenizer.ggml.token_type")
        if len(set(self.tokens)) != len(self.tokens) or (types is not None and len(types) != len(self.tokens)):
            raise ModelError(f"{gguf.path}: its vocabulary is inconsistent")
        self._types = [1] * len(self.tokens) if types is None else [int(t) for t in types]
        for i, token in enumerate(self.tokens):
            if self._types[i] == USER_DEFINED and token in ENDS | OTHERS:
                self._types[i] = CONTROL
        self._control = {t: i for i, t in enumerate(self.tokens) if self._types[i] == CONTROL}
        try:
            self._hf = self._from_pieces(gguf) if self._pieces else self._from_merges(gguf, pre)
        except ModelError:
            raise
        except Exception as e:  # tokenizers raises bare Exception
            why = " ".join(str(e).split())[:120]
            raise ModelError(f"{gguf.path}: its merges do not fit its vocabulary: {why}") from None
        self._hf.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in self._control])
        own = [t for t, kind in zip(self.tokens, self._types, strict=True) if kind == USER_DEFINED]
        self._hf.add_tokens([AddedToken(t, normalized=False, special=False) for t in own])
        self._hf.encode_special_tokens = True
        self._normalizer = gguf.fields.get(NORMALIZER, "")
        if self._normalizer not in ("", "NFC"):
            raise ModelError(f"{gguf.path}: its normalizer {self._normalizer!r:.40} is not supported")
        self.chat_template: str = gguf.fields.get("tokenizer.chat_template", "")
        self._ends(gguf)
        alphabet = byte_alphabet()
        present = set(range(256)) if self._pieces else {alphabet[t] for t in self.tokens if t in alphabet}
        self._missing = frozenset(set(range(256)) - present)

    def _from_merges(self, gguf: Gguf, pre: str | None) -> Any:
        """A byte-level BPE."""
        pairs = [tuple(m.split(" ")) for m in gguf.need("tokenizer.ggml.merges", list)]
        vocab = {t: i for i, t in enumerate(self.tokens)}
        whole = pre == "llama-bpe"  # a word that is a token is taken whole, whatever the merges would make of it
        out = HfTokenizer(models.BPE(vocab, pairs, fuse_unk=False, byte_fallback=False, ignore_merges=whole))
        out.pre_tokenizer = _pre_tokenizer(pre)
        out.decoder = decoders.ByteLevel()
        return out

    def _from_pieces(self, gguf: Gguf) -> Any:
        """A vocabulary with ▁ for spaces and scores for merges."""
        scores = gguf.fields.get("tokenizer.ggml.scores")
        if not isinstance(scores, np.ndarray) or len(scores) != len(self.tokens):
            raise ModelError(f"{gguf.path}: its vocabulary is inconsistent")
        return sentencepiece.build(self.tokens, self._types, scores.astype(np.float64))

    def _ends(self, gguf: Gguf) -> None:
        """Which tokens begin and end a text."""
        ends = {gguf.fields.get("tokenizer.ggml.eos_token_id"), gguf.fields.get("tokenizer.ggml.eot_token_id")}
        ends |= {self._control.get(name) for name in END_NAMES}
        self.eos_ids: tuple[int, ...] = tuple(sorted(int(e) for e in ends if e is not None))
        if not self.eos_ids:
            raise ModelError(f"{gguf.path}: its tokenizer names no end token")
        eos = gguf.fields.get("tokenizer.ggml.eos_token_id")
        self.eos = int(eos) if eos is not None else self.eos_ids[0]
        first = gguf.fields.get("tokenizer.ggml.bos_token_id")
        if gguf.fields.get("tokenizer.ggml.add_bos_token") is True and first is not None:
            if not 0 <= int(first) < len(self.tokens):
                raise ModelError(f"{gguf.path}: tokenizer.ggml.bos_token_id is no token of its vocabulary")
            self.bos = self.tokens[int(first)]

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
            if kind in (UNKNOWN, CONTROL, UNUSED):
                out.append(None)
            elif self._pieces:
                out.append(sentencepiece.spelt(token, kind))
            else:
                plain = token.encode() if kind == USER_DEFINED else bytes(alphabet[c] for c in token if c in alphabet)
                out.append(plain)
        return out


def _pre_tokenizer(pre: str | None) -> Any:
    """How a text is split before the merges apply."""
    if pre is not None and pre in SPLITS:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated"), level])
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, level]) if pre == "smollm" else level
