"""The generator in this process: text that is whole characters, and messages that are logged as they are used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi_edge.egress import EgressLog
from popi_edge.engines.base import open_engine
from popi_edge.errors import GeneratorError
from popi_edge.generators import Generator, Reply, collect
from popi_edge.generators.local import LocalGenerator, NoRepeat, text_pieces
from popi_edge.prompts import chat_ids
from popi_edge.store import Store
from tests.test_generators import collect_delivery, make_sealed


@given(st.text(max_size=30), st.lists(st.integers(1, 5), max_size=60))
def test_text_pieces_never_break_a_character(text: str, sizes: list[int]) -> None:
    data, tokens, start = text.encode("utf-8", "replace"), [], 0
    for size in [*sizes, len(data)]:
        tokens.append(data[start : start + size])
        start += size
    pieces = list(text_pieces(range(len(tokens)), [*tokens, None]))
    assert "".join(pieces) == data.decode()
    assert "�" not in "".join(pieces).replace("�" * text.count("�"), "")
    assert all(pieces)


def test_broken_utf8_becomes_a_replacement_and_control_tokens_nothing() -> None:
    assert list(text_pieces([0, 1, 2], [b"a\xe2\x98", None, b"b"])) == ["a", "�b"]
    assert list(text_pieces([0], [b"\xe2"])) == ["�"]


class ByteTokenizer:
    """A tokenizer of the engines' kind with the bytes as its vocabulary, and a plain template."""

    token_bytes = tuple(bytes([i]) for i in range(256))
    eos_ids = (256,)
    eos = 256
    chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    bos = ""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def control(self, name: str) -> int | None:
        return None

    @property
    def controls(self) -> tuple[str, ...]:
        return ()


class Parrot:
    """An engine that says its prompt's bytes backwards."""

    name, context_length, tokenizer = "parrot", 4096, ByteTokenizer()

    def stream(self, prompt: list[int], *, max_tokens: int, **options: Any) -> Iterator[int]:
        self.options = options
        yield from "né ☂ ok".encode()[:max_tokens]


def test_the_local_generator_streams_text_and_logs_its_messages(tmp_path: Path) -> None:
    engine: Any = Parrot()
    g = LocalGenerator(engine, adapter="generate")
    sealed = make_sealed("Explain RAID")
    request = g.prepare(sealed)
    with Store.open(tmp_path / "popi.db") as store:
        reply, egress_id = collect_delivery(g, request, EgressLog(store))
        record = EgressLog(store).get(egress_id)
    assert reply == Reply("né ☂ ok", None, "stop")
    assert engine.options["adapter"] == "generate" and engine.options["constraint"] is None
    assert (record.meta["destination"], record.meta["headers"]) == ("in-process", {})
    assert json.loads(record.body or b"") == [{"role": m.role, "content": m.content} for m in sealed.messages]
    assert not g.remote and isinstance(g, Generator)


def test_a_local_reply_that_was_cut_says_so() -> None:
    engine: Any = Parrot()
    g = LocalGenerator(engine, max_tokens=2, no_repeat=3)
    pieces: list[str] = []
    reply = collect(g.stream(g.prepare(make_sealed())), pieces.append)
    assert isinstance(engine.options["constraint"], NoRepeat)
    assert reply == Reply("n�", None, "length")
    with pytest.raises(GeneratorError, match="takes only what the guard has sealed"):
        g.prepare([("user", "x")])


@given(st.lists(st.integers(0, 4), min_size=40, max_size=40), st.integers(1, 4))
def test_no_run_of_tokens_comes_twice_and_all_else_may_come(wanted: list[int], length: int) -> None:
    rule, made = NoRepeat(length, 5), list[int]()
    state = rule.start()
    for token in wanted:
        runs = [tuple(made[i : i + length]) for i in range(len(made) - length + 1)]
        end = tuple(made[len(made) - length + 1 :]) if length > 1 else ()
        allowed = rule.allowed(state, 9).tolist()
        assert allowed == [t for t in range(5) if (*end, t) not in runs]
        if token not in allowed:
            continue
        made.append(token)
        state = rule.advance(state, token)


@pytest.mark.parametrize("engine_name", ["onnx", "llama_cpp"])
def test_a_real_engine_streams_what_it_generates(tiny: tuple[Path, Any], engine_name: str) -> None:
    engine = open_engine(engine_name, tiny[0], threads=1)
    try:
        g = LocalGenerator(engine, max_tokens=24, temperature=1.5, seed=7)
        sealed = make_sealed("Explain RAID")
        pieces: list[str] = []
        reply = g.send(g.prepare(sealed), on_text=pieces.append)
        ids = chat_ids(engine.tokenizer, [(m.role, m.content) for m in sealed.messages])
        expected = engine.generate(ids, max_tokens=24, temperature=1.5, seed=7)
    finally:
        engine.close()
    assert "".join(pieces) == reply.text == expected.text
    assert len(pieces) > 1
    assert reply.finish == ("stop" if expected.finished else "length")
