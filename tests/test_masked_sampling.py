"""Whatever the weights: ≥ 10,000 tokens at temperature 2 from random adapters on the real base break no rule."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from popi_edge import prompts
from popi_edge.engines.base import open_engine
from popi_edge.engines.onnx_graph import Shape
from popi_edge.models.gguf import Gguf
from popi_edge.vocabulary import ClosedVocabulary, Lexicon
from tests import tiny as make

TOKENS = 10_000


@pytest.mark.parametrize("name", ["onnx", "llama_cpp"])
def test_no_word_outside_the_lexicon_and_no_broken_rule(
    name: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s = Shape.of(Gguf(base))
    config: Any = SimpleNamespace(hidden_size=s.hidden, intermediate_size=s.ffn, num_hidden_layers=s.layers,
                                  num_attention_heads=s.heads, num_key_value_heads=s.kv_heads)  # fmt: skip
    lexicon = Lexicon.load()
    adapters = {}
    for i in range(4):
        adapters[f"a{i}"] = tmp_path / f"a{i}.gguf"
        make.adapter(adapters[f"a{i}"], config, seed=i, rank=2, scale=0.02 * 3**i)
    engine = open_engine(name, base, adapters=adapters)
    t = engine.tokenizer
    mask = ClosedVocabulary(lexicon, t.token_bytes, t.eos_ids, max_tokens=48)
    prompt = prompts.chat_ids(t, prompts.infer_messages(["The person said:\n> My key is sk-1, I am Ann.\n\n"]))
    tokens = texts = 0
    while tokens < TOKENS:
        done = engine.generate(prompt, max_tokens=48, constraint=mask, temperature=2.0, seed=texts,
                               adapter=f"a{texts % 4}")  # fmt: skip
        assert lexicon.accepts(done.text), lexicon.explain(done.text)
        assert len(done.ids) <= 48
        tokens, texts = tokens + len(done.ids), texts + 1
    with capsys.disabled():
        print(f"\n{name}: {tokens} tokens in {texts} texts at temperature 2, 0 words outside, 0 rules broken")
    engine.close()
