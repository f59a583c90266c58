"""The fuzzer reaches every special token, and the comparison finds tokenizers that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf
from popi_export import fuzz
from popi_export.native import NativeModel
from tests import tiny_hf


def test_strings_differ_from_each_other_and_hold_every_special_token_inside_text() -> None:
    special = [f"<|s{i}|>" for i in range(40)]
    texts = fuzz.strings(3_300, 5, special)
    assert len(set(texts)) == 3_300 and texts == fuzz.strings(3_300, 5, special) != fuzz.strings(3_300, 6, special)
    for name in special:
        assert any(name in t and t.replace(name, "") for t in texts)
        assert any(name[:-1] in t and name not in t for t in texts)
    assert {c for t in texts for c in t} > set("\0\t\n\r \u200b\ufeff😀")


def test_the_base_tokenizes_alike_in_llama_cpp_and_the_runtime_with_special_tokens_too(base: Path) -> None:
    gguf = Gguf(base)
    texts = fuzz.strings(3_300, 11, fuzz.controls(gguf))
    assert len(fuzz.controls(gguf)) == 17
    with NativeModel(base) as model:
        native = lambda text, special: model.tokenize(text, special=special)  # noqa: E731
        found = fuzz.differences(texts, fuzz.of_runtime(gguf), native, fuzz.cleaner(gguf))
        assert (found.strings, found.differing, found.first) == (3_300, 0, "")
        assert 0 < found.cleaned < 1_200
        raw = fuzz.differences(texts, fuzz.of_runtime(gguf), native)
        assert raw.differing > 0  # what cannot be spelt is why there is a cleaner


def test_a_wrong_pre_tokenizer_and_a_missing_special_token_are_found(tmp_path: Path) -> None:
    paths: dict[str, Any] = {}
    for kind in ("qwen2", "llama-bpe", "gpt-2", "smollm"):
        paths[kind] = tmp_path / f"{kind}.json"
        tiny_hf.tokenizer(kind).save(str(paths[kind]))
    texts = fuzz.strings(1_000, 0, tiny_hf.SPECIAL)
    qwen = fuzz.of_json(paths["qwen2"])
    assert fuzz.differences(texts, qwen, fuzz.of_json(paths["qwen2"])).differing == 0
    for other in ("llama-bpe", "gpt-2", "smollm"):
        assert fuzz.differences(texts, qwen, fuzz.of_json(paths[other])).differing > 50
    without = lambda text, _: qwen(text, False)  # noqa: E731
    found = fuzz.differences(texts, qwen, without)
    assert 100 < found.differing < 1_000 and "<|" in found.first


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ModelError, match=r"t\.json: not a tokenizer"):
        fuzz.of_json(tmp_path / "t.json")
