"""A folder's own tokenizer, llama.cpp on the GGUF and the runtime's tokenizer give the same ids for every string.

Each kind of pre-tokenizer, over 3,000 fuzzed strings that hold every special token: as plain text (control tokens stay
text) and with special tokens heeded. A wrong kind in the same file is seen.
"""

from __future__ import annotations

import ctypes
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp as llama
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as HfTokenizer

from popi_edge import prompts
from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_export import fuzz, source
from popi_export.fuzz import PIECES
from popi_export.fuzz import strings as fuzzed
from popi_export.to_gguf import write_model
from popi_export.vocabulary import comparable
from tests import tiny_hf

KINDS = ("gpt-2", "smollm", "qwen2", "llama-bpe")
OWN = ("<tool>", "</tool>")
MORE = [
    "'ſ", "1234567", "１２３", "Ⅷ", "'LL", "'Re", " 'd", "\x85", "\u2028", "\u3000", "\x0b", "\x1c", "a\u0300", "\r",
    "\r\r\n", "_-_", " \u0378", "</s>", "[PAD700]", "<|fim_prefix|>", *tiny_hf.SPECIAL, *OWN,
]  # fmt: skip


@llama.llama_log_callback
def quiet(level: int, text: bytes, data: Any) -> None:
    """llama.cpp writes to stderr otherwise."""


class Native:
    """llama.cpp's tokenizer of a file."""

    def __init__(self, path: Path) -> None:
        llama.llama_log_set(quiet, ctypes.c_void_p(0))
        params = llama.llama_model_default_params()
        params.vocab_only = True
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        assert self.model
        self.vocab = llama.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, begin: bool = False, special: bool = False) -> list[int]:
        data = text.encode()
        ids = (llama.llama_token * (len(data) + 8))()
        n = llama.llama_tokenize(self.vocab, data, len(data), ids, len(data) + 8, begin, special)
        assert n >= 0
        return list(ids[:n])

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        n = llama.llama_token_to_piece(self.vocab, token, buffer, 512, 0, False)
        return buffer.raw[:n]

    def close(self) -> None:
        llama.llama_model_free(self.model)


def strings(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    mixed = ["".join(rng.choice([*PIECES, *MORE]) for _ in range(rng.randrange(1, 25))) for _ in range(n // 2)]
    return [comparable(t) for t in (*fuzzed(n - n // 2, seed), *mixed)]


@pytest.fixture(scope="module", params=[*KINDS, "gemma"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose 2,000 tokens are merged from the very kind of string that is tried; two ids have no token."""
    words = tiny_hf.tokenizer(request.param, size=2_000, texts=[*strings(2_000, seed=1), "don't we'll 1234567"] * 2)
    words.add_tokens([AddedToken(t, normalized=False, special=False) for t in OWN])
    path = tmp_path_factory.mktemp("alike") / request.param
    tiny_hf.folder(path, "llama", words=words, extra=2)
    write_model(path / "m.gguf", source.read(path), "F32")
    return path


def test_no_string_differs(folder: Path) -> None:
    ours, native = Tokenizer(Gguf(folder / "m.gguf")), Native(folder / "m.gguf")
    plain, heeding = (HfTokenizer.from_file(str(folder / "tokenizer.json")) for _ in range(2))
    plain.encode_special_tokens = True
    texts = strings(4_000, seed=2)
    assert len(set(texts)) > 3_000 and all(any(s in t for t in texts) for s in (*tiny_hf.SPECIAL, *OWN))
    as_text = {t: plain.encode(t, add_special_tokens=False).ids for t in texts}
    assert [t for t in texts if ours.encode(t) != as_text[t]] == []
    assert [t for t in texts if native.encode(t) != as_text[t]] == []
    heeded = {t: heeding.encode(t).ids for t in texts}
    assert [t for t in texts if native.encode(t, begin=True, special=True) != heeded[t]] == []
    assert any(heeded[t] != as_text[t] for t in texts)
    native.close()


def test_every_token_is_the_same_bytes(folder: Path) -> None:
    ours, native = Tokenizer(Gguf(folder / "m.gguf")), Native(folder / "m.gguf")
    assert [native.piece(i) for i in range(len(ours))] == [b or b"" for b in ours.token_bytes]
    assert ours.token_bytes[-3] == b"</tool>" and ours.token_bytes[-2:] == [None, None]
    native.close()


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_a_wrong_kind_is_seen(folder: Path, tmp_path: Path) -> None:
    """The same vocabulary under each other kind of pre-tokenizer: some string differs. Not qwen2's under llama-bpe: it
    has no token of several digits, and that is all that tells them apart."""
    texts = strings(1_000, seed=3)
    plain = HfTokenizer.from_file(str(folder / "tokenizer.json"))
    plain.encode_special_tokens = True
    right = Gguf(folder / "m.gguf").fields["tokenizer.ggml.pre"]
    for wrong in set(KINDS) - {right} - ({"llama-bpe"} if right == "qwen2" else set()):
        path = write_as(tmp_path / "wrong.gguf", folder, wrong)
        native = Native(path)
        assert any(native.encode(t) != plain.encode(t, add_special_tokens=False).ids for t in texts), wrong
        native.close()
    assert right == folder.name


def write_as(path: Path, folder: Path, pre: str) -> Path:
    found = source.read(folder)
    fields = [(k, code, pre if k == "tokenizer.ggml.pre" else v) for k, code, v in found.fields]
    write_model(path, replace(found, fields=fields), "F16")
    return path


def test_a_token_before_every_text(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "llama", vocabulary="llama-bpe", bos=True)
    write_model(path / "m.gguf", source.read(path), "F16")
    native = Native(path / "m.gguf")
    hf = HfTokenizer.from_file(str(path / "tokenizer.json"))
    assert Tokenizer(Gguf(path / "m.gguf")).bos == "<|endoftext|>"
    for text in ("plain words", "", "<|im_start|>x"):
        assert native.encode(text, begin=True, special=True) == hf.encode(text).ids
    assert native.encode("x", begin=True)[0] == 0
    native.close()


def test_a_prompt_begins_with_that_token_where_the_template_says_so(tmp_path: Path) -> None:
    turns = [("user", "<|endoftext|>hi")]
    for bos in (True, False):
        path = tiny_hf.folder(tmp_path / str(bos), "gemma3", vocabulary="gemma", bos=bos)
        template = "{{ bos_token }}" + tiny_hf.TEMPLATE
        write_model(path / "m.gguf", source.read(path, chat_template=template), "F16")
        ids = prompts.chat_ids(Tokenizer(Gguf(path / "m.gguf")), turns)
        assert ids.count(0) == bos and (ids[0] == 0) == bos


def test_text_is_normalized_where_the_model_was_trained_so(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "llama", vocabulary="qwen2")
    value = json.loads((path / "tokenizer.json").read_text("utf-8")) | {"normalizer": {"type": "NFC"}}
    (path / "tokenizer.json").write_text(json.dumps(value), "utf-8")
    found = source.read(path)
    assert "NFC" in found.notes[0]
    write_model(path / "m.gguf", found, "F16")
    ours, hf = Tokenizer(Gguf(path / "m.gguf")), HfTokenizer.from_file(str(path / "tokenizer.json"))
    assert ours.encode("e\u0301") == hf.encode("e\u0301").ids == ours.encode("\u00e9")
    native, clean = Native(path / "m.gguf"), fuzz.cleaner(Gguf(path / "m.gguf"))
    texts, own = fuzz.strings(400, 5), fuzz.of_json(path / "tokenizer.json")
    assert fuzz.differences(texts, own, lambda t, names: native.encode(t, special=names), clean).differing == 0
    native.close()


def test_added_tokens_that_llama_cpp_makes_control_tokens(tmp_path: Path) -> None:
    """``<|fim_prefix|>`` is no special token in the folder; in the GGUF it is one for llama.cpp and for the runtime."""
    words = tiny_hf.tokenizer("qwen2")
    words.add_tokens([AddedToken("<|fim_prefix|>", normalized=False, special=False)])
    path = tiny_hf.folder(tmp_path / "m", "qwen2", words=words)
    write_model(path / "m.gguf", source.read(path), "F16")
    gguf, native = Gguf(path / "m.gguf"), Native(path / "m.gguf")
    texts = fuzz.strings(400, 5, ["<|fim_prefix|>"])
    own = fuzz.of_json(path / "tokenizer.json")
    for other in (fuzz.of_runtime(gguf), lambda text, names: native.encode(text, special=names)):
        assert fuzz.differences(texts, own, other, fuzz.cleaner(gguf)).differing == 0
    naive = HfTokenizer.from_file(str(path / "tokenizer.json"))
    naive.encode_special_tokens = True
    assert any(naive.encode(t).ids != own(t, False) for t in texts)
    native.close()


def test_a_normalizer_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "llama")
    found = source.read(path)
    fields = [*found.fields, ("popi.tokenizer.normalizer", 8, "NFKC")]
    write_model(path / "m.gguf", replace(found, fields=fields), "F16")
    with pytest.raises(ModelError, match="its normalizer 'NFKC' is not supported"):
        Tokenizer(Gguf(path / "m.gguf"))


def torn(merges: list[list[str]]) -> None:
    """Move one of two merges to the same token (no run of spaces) to the end."""
    made = ["".join(m) for m in merges]
    at = next(i for i, t in enumerate(made[:-2]) if made[i + 1] == t and t.strip("▁"))
    merges.append(merges.pop(at))


@pytest.mark.parametrize(("change", "words"), [
    (lambda m, a: torn(m["merges"]), "do not stand together"),
    (lambda m, a: m["merges"].pop(), "is made of the tokens .* but no merge joins them"),
    (lambda m, a: m.update(fuse_unk=False), "is not built as Gemma's"),
    (lambda m, a: m.update(byte_fallback=False), "byte_fallback does not go with"),
    (lambda m, a: m["vocab"].update({"<0xZZ>": m["vocab"].pop("<0x0A>")}), "for 255 bytes, not for 256"),
])  # fmt: skip
def test_pieces_that_scores_cannot_say_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "gemma3", vocabulary="gemma", extra=5)
    source.read(path)
    value = json.loads((path / "tokenizer.json").read_text("utf-8"))
    change(value["model"], value["added_tokens"])
    (path / "tokenizer.json").write_text(json.dumps(value), "utf-8")
    with pytest.raises(ModelError, match=words):
        source.read(path)


def test_a_token_that_llama_cpp_would_cut_short_is_refused(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "gemma3", vocabulary="gemma", extra=5)
    value = json.loads((path / "tokenizer.json").read_text("utf-8"))
    value["model"]["vocab"]["\0"] = len(value["model"]["vocab"])
    (path / "tokenizer.json").write_text(json.dumps(value), "utf-8")
    with pytest.raises(ModelError, match="a token has a NUL in it"):
        source.read(path)


def test_plain_text_that_pieces_would_join_to_a_control_token(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "gemma3", vocabulary="gemma", extra=5)
    value = json.loads((path / "tokenizer.json").read_text("utf-8"))
    n = len(value["model"]["vocab"])
    value["model"]["vocab"] |= {"<|": n, "im_end|>": n + 1}
    (path / "tokenizer.json").write_text(json.dumps(value), "utf-8")
    with pytest.raises(ModelError, match="plain text could become it"):
        source.read(path)
