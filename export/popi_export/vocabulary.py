"""tokenizer.json → the tokenizer that GGUF describes, told by its structure; what may not tokenize alike is refused.

``tokenizer.ggml.pre`` decides how llama.cpp splits a text before its merges apply:

    ByteLevel with its own regex                         gpt-2
    Digits one by one, then ByteLevel with its regex     smollm
    Split by Qwen 2's regex, then ByteLevel              qwen2
    Split by Llama 3's regex, then ByteLevel,
      and whole words that are tokens are taken whole    llama-bpe
    spaces as ▁, bytes where nothing else fits           (Gemma's; the kind ``llama`` with scores, spm.py)

Not covered: WordPiece, Unigram, tokens that strip spaces beside them, a token at a text's end.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from popi_edge.errors import ModelError
from popi_edge.models.gguf import STRING, UINT32
from popi_edge.models.template import MAX_LENGTH
from popi_edge.models.tokenizer import ENDS, NORMALIZER, OTHERS, SPLITS, byte_alphabet
from popi_export import spm
from popi_export.architectures import ARRAY, BOOL, Field
from popi_export.bounded import MANY, read_bytes, read_json

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
MAX_TOKENIZER, MAX_SETTINGS, MAX_TEMPLATE = 40 << 20, 1 << 21, MAX_LENGTH
"""The largest real tokenizer.json is Gemma's: 33 MB for 262,144 tokens, its tokenizer_config.json 1.2 MB. What is
larger than the model's own vocabulary can need is refused unread; what is not takes what a right one takes, a second
and 300 MB at Gemma's size, a tenth of each for 40,000 tokens."""
MAX_TOKENS = 1 << 20
BYTES, VALUES = 256, 12
"""A token of the largest real ones takes 134 bytes and 7.6 values, its share of the merges included."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
NEWER = (
    (0x1C89, 0x1C8A), (0xA7CB, 0xA7CD), (0xA7DA, 0xA7DC), (0x105C0, 0x105F3), (0x10D40, 0x10D49), (0x10D4A, 0x10D65),
    (0x10D6F, 0x10D85), (0x10EC2, 0x10EC4), (0x11380, 0x113D3), (0x116D0, 0x116E3), (0x11BC0, 0x11BF9),
    (0x13460, 0x143FA), (0x16100, 0x16139), (0x16D40, 0x16D79), (0x18CFF, 0x18CFF), (0x1CCF0, 0x1CCF9),
    (0x1E5D0, 0x1E5FA),
)  # fmt: skip
"""Letters and digits that Unicode 16 added: ``tokenizers`` knows them, llama.cpp's older tables do not, so that a text
with them may be split differently, whatever the vocabulary."""


def comparable(text: str) -> str:
    """``text`` without the characters that only one side knows to be letters or digits."""
    return "".join(c for c in text if not any(low <= ord(c) <= high for low, high in NEWER))


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF has it. ``scores`` only where ``model`` is ``llama``; ``end`` also ends a reply."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    bos: int | None
    eos: int
    end: int | None
    pad: int | None
    add_bos: bool
    chat_template: str
    normalizer: str = ""
    notes: tuple[str, ...] = ()

    def padded(self, rows: int) -> Vocabulary:
        """With a placeholder for every row of the embedding that has no token. Raises ModelError where rows lack."""
        lacking = rows - len(self.tokens)
        if lacking < 0:
            raise ModelError(f"the tokenizer has {len(self.tokens):,} tokens, but the embedding only {rows:,} rows")
        if not lacking:
            return self
        names = [f"[PAD{i}]" for i in range(len(self.tokens), rows)]
        if set(names) & set(self.tokens):
            raise ModelError("the tokenizer has tokens of the form [PADn] of its own")
        return replace(
            self, tokens=[*self.tokens, *names], types=[*self.types, *[UNUSED] * lacking],
            scores=[*self.scores, *[-2e7] * lacking] if self.scores else (),
            notes=(*self.notes, f"{lacking} rows of the embedding have no token"),
        )  # fmt: skip

    def fields(self) -> list[Field]:
        """The tokenizer's metadata."""
        out: list[Field] = [
            ("tokenizer.ggml.model", STRING, self.model),
            ("tokenizer.ggml.pre", STRING, self.pre),
            ("tokenizer.ggml.tokens", ARRAY, list(self.tokens)),
            ("tokenizer.ggml.token_type", ARRAY, list(self.types)),
        ]
        if self.scores:
            out.append(("tokenizer.ggml.scores", ARRAY, [float(s) for s in self.scores]))
            out.append(("tokenizer.ggml.add_space_prefix", BOOL, False))
        else:
            out.append(("tokenizer.ggml.merges", ARRAY, list(self.merges)))
        ids = {"bos": self.bos, "eos": self.eos, "eot": self.end, "padding": self.pad}
        out += [(f"tokenizer.ggml.{key}_token_id", UINT32, i) for key, i in ids.items() if i is not None]
        out.append(("tokenizer.ggml.add_bos_token", BOOL, self.add_bos))
        out.append(("tokenizer.chat_template", STRING, self.chat_template))
        if self.normalizer:
            out.append((NORMALIZER, STRING, self.normalizer))
        return out


def read(
    folder: Path, ends: Iterable[int] = (), *, chat_template: str | None = None, rows: int = MAX_TOKENS
) -> Vocabulary:
    """A folder's tokenizer. ``ends`` are ids that its configs name as the end of a reply; ``chat_template`` is one to
    use instead of the folder's own; ``rows`` those of the embedding, which bound how large the files may be.

    Raises ModelError where anything about it is missing or not known to tokenize alike in llama.cpp.
    """
    path = folder / TOKENIZER
    value = read_json(path, min(MAX_TOKENIZER, (1 << 20) + BYTES * rows), most=MANY + VALUES * rows)
    settings = read_json(folder / SETTINGS, MAX_SETTINGS, most=MANY + rows) if (folder / SETTINGS).exists() else {}
    if settings.get("auto_map"):
        raise ModelError(f"{folder / SETTINGS}: it wants code from its own repository to be run; that is never done")
    template = chat_template if chat_template is not None else _template(folder, settings)
    model = value.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ModelError(f"{path}: its model is not a BPE")
    tokens, types, notes = _tokens(model, value.get("added_tokens") or [], path)
    spelt = tokens
    spaces = spm.is_sentencepiece(value)
    merges = _merges(model, set(tokens), path, spaces=spaces)
    scores: Sequence[float] = ()
    normalizer = ""
    if spaces:
        kind, pre = "llama", "default"
        spelt, types, scores, more = spm.scores(model, tokens, types, merges, path)
        notes += more
    else:
        kind, pre = "gpt2", pre_type(value, path)
        normalizer = _normalizer(value.get("normalizer"), path)
        notes += _unspelt(model, path)
    if normalizer:
        notes.append(f"its tokenizer normalizes text to {normalizer} first; llama.cpp does not")
    bos, add_bos = _beginning(value.get("post_processor"), settings, tokens, path)
    eos = _special(settings.get("eos_token"), tokens)
    others = sorted({i for i in ends if 0 <= i < len(tokens)} - {eos})
    if eos is None:
        if not others:
            raise ModelError(f"{folder / SETTINGS}: it names no eos_token, so nothing says where a reply ends")
        eos = others.pop(0)
    named = [i for i in others if tokens[i] in ENDS] or others
    return Vocabulary(
        model=kind, pre=pre, tokens=spelt, types=types, merges=[" ".join(m) for m in merges] if not spaces else (),
        scores=scores, bos=bos, eos=eos, end=named[0] if named else None,
        pad=_special(settings.get("pad_token"), tokens), add_bos=add_bos, chat_template=template,
        normalizer=normalizer, notes=tuple(notes),
    )  # fmt: skip


def pre_type(value: Mapping[str, Any], path: Path) -> str:
    """What llama.cpp calls the pre-tokenizer of a tokenizer.json. Raises ModelError for one that is not known."""
    found, merges_ignored = value.get("pre_tokenizer"), bool(value["model"].get("ignore_merges"))
    steps = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
    if not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps) or not 1 <= len(steps) <= 2:
        raise ModelError(f"{path}: its pre-tokenizer is not one that is known")
    kinds = [s.get("type") for s in steps]
    last = steps[-1]
    if kinds[-1] == "ByteLevel" and last.get("add_prefix_space") is False:
        regex = last.get("use_regex", True) is True
        if kinds == ["ByteLevel"] and regex and not merges_ignored:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and regex and steps[0].get("individual_digits") and not merges_ignored:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not regex:
            split = steps[0]
            if split.get("behavior") == "Isolated" and split.get("invert", False) is False:
                known = {SPLITS["qwen2"]: ("qwen2", False), SPLITS["llama-bpe"]: ("llama-bpe", True)}
                pattern = split.get("pattern")
                regexp = str(pattern.get("Regex")) if isinstance(pattern, dict) else ""
                name, ignored = known.get(regexp, ("", False))
                if name and ignored == merges_ignored:
                    return name
    what = " + ".join(str(k)[:20] for k in kinds) + (", ignore_merges" if merges_ignored else "")
    raise ModelError(f"{path}: its pre-tokenizer ({what}) is not one that is known to be like one of llama.cpp's")


def _normalizer(value: Any, path: Path) -> str:
    if value is None or (isinstance(value, dict) and value.get("type") == "Sequence" and not value.get("normalizers")):
        return ""
    if isinstance(value, dict) and value.get("type") == "NFC":
        return "NFC"
    kind = value.get("type") if isinstance(value, dict) else value
    raise ModelError(f"{path}: its normalizer ({kind!r:.40}) is not supported")


def _unspelt(model: Mapping[str, Any], path: Path) -> list[str]:
    """A note on bytes that the vocabulary lacks. Raises ModelError where an unknown token would stand for them."""
    lacking = [b for c, b in byte_alphabet().items() if c not in model["vocab"]]
    if lacking and model.get("unk_token") is not None:
        raise ModelError(f"{path}: its vocabulary lacks {len(lacking)} bytes and puts {model['unk_token']!r:.40} there")
    return [f"its vocabulary lacks {len(lacking)} bytes; characters with them are dropped"] if lacking else []


def _tokens(model: Mapping[str, Any], added: Any, path: Path) -> tuple[list[str], list[int], list[str]]:
    """Tokens by id, their types and notes."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise ModelError(f"{path}: its vocabulary is not an object")
    by_id = {i: token for token, i in vocab.items()} if set(map(type, vocab.values())) <= {int} else {}
    if len(by_id) != len(vocab) or "" in vocab or (by_id and not 0 <= min(by_id) <= max(by_id) < MAX_TOKENS):
        seen: set[int] = set()
        token, i = next((t, i) for t, i in vocab.items()
                        if not t or not _is_id(i) or i in seen or seen.add(i))  # type: ignore[func-returns-value]  # fmt: skip
        raise ModelError(f"{path}: token {token!r:.60} has the id {i!r:.30}")
    kinds: dict[int, int] = {}
    for entry in added:
        token, i, kinds[i] = _added(entry, path)
        if by_id.get(i, token) != token or vocab.get(token, i) != i:
            raise ModelError(f"{path}: the added token {token!r:.60} has the id of another token")
        by_id[i] = token
    if not by_id or max(by_id) >= 2 * len(by_id) + 1024:
        raise ModelError(f"{path}: its token ids are full of holes")
    holes = [i for i in range(max(by_id) + 1) if i not in by_id]
    by_id |= {i: f"[PAD{i}]" for i in holes}
    kinds |= dict.fromkeys(holes, UNUSED)
    tokens = [by_id[i] for i in range(len(by_id))]
    if len(set(tokens)) != len(tokens):
        raise ModelError(f"{path}: a token stands twice in its vocabulary")
    if "\0" in "".join(tokens):
        raise ModelError(f"{path}: a token has a NUL in it, where llama.cpp would end it")
    types = [kinds.get(i, NORMAL) for i in range(len(by_id))]
    notes = [f"{len(holes)} ids have no token"] if holes else []
    odd = [t for t in tokens if t in ENDS or t in OTHERS]
    if odd := [t for t in odd if types[tokens.index(t)] == NORMAL]:
        notes.append(f"llama.cpp makes {', '.join(odd)} control tokens, which are plain ones here")
    return tokens, types, notes


def _is_id(i: Any) -> TypeGuard[int]:
    return type(i) is int and 0 <= i < MAX_TOKENS


def _added(entry: Any, path: Path) -> tuple[str, int, int]:
    """An added token's text, id and type."""
    if not isinstance(entry, dict):
        raise ModelError(f"{path}: an added token is not an object")
    token, i = entry.get("content"), entry.get("id")
    if not isinstance(token, str) or not token or not _is_id(i):
        raise ModelError(f"{path}: the added token {token!r:.60} has the id {i!r:.30}")
    if on := [flag for flag in ("lstrip", "rstrip", "single_word") if entry.get(flag)]:
        raise ModelError(f"{path}: the added token {token!r:.60} has {on[0]}, which llama.cpp would not heed")
    special = bool(entry.get("special")) or token in ENDS | OTHERS
    return token, i, CONTROL if special else USER_DEFINED


def _merges(model: Mapping[str, Any], tokens: set[str], path: Path, *, spaces: bool) -> list[tuple[str, str]]:
    found = model.get("merges")
    if not isinstance(found, list):
        raise ModelError(f"{path}: its merges are not a list")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise ModelError(f"{path}: {key} is not supported")
    if bool(model.get("byte_fallback")) != spaces:
        raise ModelError(f"{path}: byte_fallback does not go with its pre-tokenizer")
    pairs = [m.split(" ") if type(m) is str else m for m in found]
    plain = set(map(type, pairs)) <= {list} and set(map(len, pairs)) <= {2}
    if not plain or not set(map(type, itertools.chain.from_iterable(pairs))) <= {str}:
        merge = next(m for m, p in zip(found, pairs, strict=True)
                     if type(p) is not list or len(p) != 2 or not type(p[0]) is type(p[1]) is str)  # fmt: skip
        raise ModelError(f"{path}: the merge {merge!r:.60} is not two tokens")
    firsts, seconds = [p[0] for p in pairs], [p[1] for p in pairs]
    made = list(map(operator.concat, firsts, seconds))
    if lost := {*firsts, *seconds, *made} - tokens:
        i = next(i for i, texts in enumerate(zip(firsts, seconds, made, strict=True)) if not lost.isdisjoint(texts))
        raise ModelError(f"{path}: the merge {found[i]!r:.60} is of or to no token")
    if not spaces and (odd := {t for t in {*firsts, *seconds} if " " in t}):
        i = next(i for i, pair in enumerate(pairs) if not odd.isdisjoint(pair))
        raise ModelError(f"{path}: the merge {found[i]!r:.60} has a space in a token")
    return list(zip(firsts, seconds, strict=True))


def _beginning(
    value: Any, settings: Mapping[str, Any], tokens: Sequence[str], path: Path
) -> tuple[int | None, bool]:
    """The id of the token that begins a text, where there is one, and whether it is put before every text."""
    steps = value.get("processors") if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    put: str | None = None
    for step in steps if isinstance(steps, list) else []:
        kind = step.get("type") if isinstance(step, dict) else None
        if step is None or kind == "ByteLevel":
            continue
        single = step.get("single") if kind == "TemplateProcessing" else None
        parts = [p for p in single if isinstance(p, dict)] if isinstance(single, list) else []
        if [list(p) for p in parts] not in ([["Sequence"]], [["SpecialToken"], ["Sequence"]]):
            raise ModelError(f"{path}: its post-processor does more than put one token before a text")
        if len(parts) == 2:
            put = str(parts[0]["SpecialToken"].get("id"))
    add = settings.get("add_bos_token")
    if isinstance(add, bool) and add != (put is not None):
        raise ModelError(f"{path}: add_bos_token is {add} in {SETTINGS}, but its post-processor says otherwise")
    bos = _special(settings.get("bos_token"), tokens)
    if put is not None and (put not in tokens or (bos is not None and tokens[bos] != put)):
        raise ModelError(f"{path}: it puts {put!r:.60} before a text, which is not its bos_token")
    return (tokens.index(put) if put is not None else bos), put is not None


def _special(value: Any, tokens: Sequence[str]) -> int | None:
    """The id of a special token of tokenizer_config.json: a text, or an object with ``content``."""
    text = value.get("content") if isinstance(value, dict) else value
    return tokens.index(text) if isinstance(text, str) and text in tokens else None


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    """The chat template, from its own file or from tokenizer_config.json; of several the one called default."""
    if (folder / TEMPLATE).exists():
        data = read_bytes(folder / TEMPLATE, 4 * MAX_TEMPLATE)
        try:
            text: Any = data.decode("utf-8")
        except UnicodeDecodeError:
            raise ModelError(f"{folder / TEMPLATE}: not UTF-8") from None
    else:
        text = settings.get("chat_template")
        if isinstance(text, list):
            named = {t.get("name"): t.get("template") for t in text if isinstance(t, dict)}
            text = named.get("default")
    if not isinstance(text, str) or not text.strip():
        raise ModelError(f"{folder}: it has no chat template ({TEMPLATE}, or in {SETTINGS}); give one with an option")
    if len(text) > MAX_TEMPLATE:
        raise ModelError(f"{folder}: its chat template has more than {MAX_TEMPLATE:,} characters")
    return text
