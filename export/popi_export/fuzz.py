"""Strings that tell tokenizers apart, and where two tokenizers differ on them.

Covered: contractions, digits, runs of spaces and line ends, scripts, emoji, private and control characters, code;
every special token inside text, alone, doubled and cut. Not covered: proof that no other string differs.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import ENDS, NORMALIZER, OTHERS, byte_alphabet

STRINGS = 3_300
PIECES = (
    "the", " The", "don't", "I'M", " we'll", "12", "3.14", "007", "\n", "\n\n", "\t", " ", "  ", "   ", "\r\n",
    "é", "ß", "naïve", "日本", "語", "привет", "مرحبا", "😀", "👩‍👩‍👧", "🇫🇷", "\u200b", "\u00a0",
    "\u2003", "…", "—", "“", "”",
    "<", "|", ">", "#", "##", "- ", "* ", "http://a.b/c?d=e&f",
    "a_b", "A1b2", "\x00", "\x04", "\x1d", "\x7f", "\u0301", "\ufeff", "\U000f0000", "\U00100000", "ﬁ", "Ω", "½",
    "²", "٣", "’s", "'S", "'ve", "`", "```", "{", "}",
)  # fmt: skip
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
RANGES = ((0x20, 0x7F), (1, 0x3000), (0xE000, 0x20000))
Encode = Callable[[str, bool], list[int]]
"""Text → ids, nothing added; with True the names of control tokens in it are those tokens, else text."""


def strings(n: int, seed: int, special: Sequence[str] = CHATML) -> list[str]:
    """n different strings, drawn by ``seed``: a third of random characters, the others of pieces, among them every one
    of ``special`` in turn."""
    rng, out = random.Random(seed), dict[str, None]()
    pieces = (*PIECES, *special)
    turn = 0
    while len(out) < n:
        if len(out) % 3 == 0:
            text = "".join(chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randrange(1, 40)))
        else:
            chosen = [rng.choice(pieces) for _ in range(rng.randrange(1, 25))]
            if special and len(out) % 3 == 1:
                name = special[turn % len(special)]
                odd = (name, name + name, f" {name}", f"{name}\n", name[:-1], name.upper())
                chosen.insert(rng.randrange(len(chosen) + 1), odd[turn // len(special) % len(odd)])
                turn += 1
            text = "".join(chosen)
        out[text] = None
    return list(out)


@dataclass(frozen=True)
class Differences:
    """Of ``strings`` strings, each as plain text and with its control tokens, how many ids lists differ; ``first`` is
    the first such string (shortened). In ``cleaned`` of them something was taken out first that cannot be compared."""

    strings: int
    differing: int
    first: str = ""
    cleaned: int = field(default=0, compare=False)


def differences(texts: Sequence[str], one: Encode, other: Encode, clean: Callable[[str], str] = str) -> Differences:
    """Compare two tokenizers; ``clean`` takes out first what cannot be compared (``cleaner``)."""
    wrong, cleaned = [], 0
    for whole in texts:
        text = clean(whole)
        cleaned += text != whole
        if any(one(text, special) != other(text, special) for special in (False, True)):
            wrong.append(text)
    return Differences(len(texts), len(wrong), repr(wrong[0])[:80] if wrong else "", cleaned)


def cleaner(gguf: Gguf) -> Callable[[str], str]:
    """Takes out what cannot be compared: characters that only the newer of two Unicode tables knows to be letters
    (``vocabulary.comparable``), and those whose bytes a byte-level vocabulary lacks (tokenizers drop them, each in its
    own way; the runtime takes them out itself). Normalizes as the model's own tokenizer does, which llama.cpp does
    not and the runtime does."""
    from popi_export.vocabulary import comparable

    form: Any = gguf.fields.get(NORMALIZER) or ""
    missing = frozenset[int]()
    if gguf.fields.get("tokenizer.ggml.model") == "gpt2":
        alphabet = byte_alphabet()
        present = {alphabet[t] for t in gguf.need("tokenizer.ggml.tokens", list) if t in alphabet}
        missing = frozenset(range(256)) - present

    def clean(text: str) -> str:
        text = unicodedata.normalize(form, comparable(text)) if form else comparable(text)
        return "".join(c for c in text if not missing.intersection(c.encode("utf-8", "ignore")))

    return clean


def controls(gguf: Gguf) -> list[str]:
    """The names of all control tokens of a GGUF, in order."""
    tokens, types = gguf.need("tokenizer.ggml.tokens", list), gguf.fields.get("tokenizer.ggml.token_type")
    return [] if types is None else [t for t, kind in zip(tokens, types, strict=True) if kind == 3]


def of_json(path: Path) -> Encode:
    """The tokenizer of a ``tokenizer.json`` by the ``tokenizers`` library; added tokens that llama.cpp makes control
    tokens by their names are control tokens here too. Raises ModelError."""
    from tokenizers import AddedToken, Tokenizer

    try:
        plain, special = (Tokenizer.from_file(str(path)) for _ in range(2))
    except Exception as e:  # tokenizers raises bare Exception
        raise ModelError(f"{path}: not a tokenizer: {' '.join(str(e).split())[:120]}") from None
    own = {t.content for t in plain.get_added_tokens_decoder().values()} & (ENDS | OTHERS)
    plain.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in sorted(own)])
    plain.encode_special_tokens = True
    return lambda text, names: list((special if names else plain).encode(text, add_special_tokens=False).ids)


def of_runtime(gguf: Gguf) -> Encode:
    """The runtime's own tokenizer of a GGUF. Raises ModelError where the runtime does not know it."""
    from popi_edge.models.tokenizer import Tokenizer

    plain, special = Tokenizer(gguf), Tokenizer(gguf)
    special._hf.encode_special_tokens = False
    return lambda text, names: (special if names else plain).encode(text)
