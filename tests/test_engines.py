"""Both engines keep the same promises: streaming, stop, masks, scores, prefixes, refusals."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popi_edge.engines.base import open_engine
from popi_edge.errors import ConfigError, EngineError, ModelError
from tests import tiny as make

PROMPT = [7, 80, 200, 13, 299, 45, 120, 270, 260, 77]
ENGINES = ["onnx", "llama_cpp"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tiny: tuple[Path, Any], tmp_path: Path) -> Iterator[Any]:
    make.adapter(tmp_path / "infer.gguf", tiny[1].config, seed=5)
    e = open_engine(request.param, tiny[0], adapters={"infer": tmp_path / "infer.gguf"}, threads=1)
    yield e
    e.close()


def test_streaming_is_generating(engine: Any) -> None:
    done = engine.generate(PROMPT, max_tokens=12)
    assert list(engine.stream(PROMPT, max_tokens=12)) == list(done.ids)
    assert done.text == engine.tokenizer.decode(done.ids)


def test_a_seed_repeats_and_another_differs(engine: Any) -> None:
    runs = [engine.generate(PROMPT, max_tokens=20, temperature=1.5, seed=s).ids for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_stop_tokens_end_the_text_and_are_not_in_it(engine: Any) -> None:
    ids = engine.generate(PROMPT, max_tokens=12).ids
    stop = ids[4]
    first = ids.index(stop)
    assert engine.generate(PROMPT, max_tokens=12, stop=[stop]).ids == ids[:first]


class Only:
    """A constraint that allows two ids in turn."""

    def start(self) -> int:
        return 0

    def allowed(self, state: int, remaining: int) -> np.ndarray:
        return np.array([20 + state, 30 + state], np.int64)

    def advance(self, state: int, token: int) -> int:
        assert token in (20 + state, 30 + state)
        return (state + 1) % 5


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_constraint_is_never_left(engine: Any, temperature: float) -> None:
    ids = engine.generate(PROMPT, max_tokens=40, constraint=Only(), temperature=temperature).ids
    assert len(ids) == 40
    assert all(t in (20 + i % 5, 30 + i % 5) for i, t in enumerate(ids))


def test_scores_are_the_log_probabilities_of_every_token(engine: Any) -> None:
    completion = [33, 44, 55, 2]
    [score] = engine.score(PROMPT, [completion])
    total = 0.0
    for i, token in enumerate(completion):
        logits = engine._feed(engine.lane(None), [*PROMPT, *completion[:i]], 1)[0].astype(np.float64)
        total += logits[token] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
    assert math.isclose(score.total, total, abs_tol=2e-3)
    assert math.isclose(sum(score.tokens), score.total, abs_tol=1e-9)


def test_under_a_constraint_the_score_is_what_is_sampled_from(engine: Any) -> None:
    completion = [20, 31, 32, 23]
    [score] = engine.score(PROMPT, [completion], constraint=Only())
    for i, token in enumerate(completion):
        logits = engine._feed(engine.lane(None), [*PROMPT, *completion[:i]], 1)[0].astype(np.float64)
        other = {20 + i: 30 + i, 30 + i: 20 + i}[token]
        assert math.isclose(score.tokens[i], -math.log1p(math.exp(logits[other] - logits[token])), abs_tol=2e-3)
    [broken] = engine.score(PROMPT, [[20, 31, 20, 23]], constraint=Only())
    assert broken.tokens[:2] == pytest.approx(score.tokens[:2], abs=2e-3)
    assert broken.tokens[2:] == (-math.inf, -math.inf) and broken.total == -math.inf
    assert engine.score(PROMPT, [completion], constraint=Only(), max_tokens=3)[0].tokens[3] == -math.inf


class Among:
    """Lets nothing but tokens from 20 to 39 be written."""

    def start(self) -> int:
        return 0

    def allowed(self, state: int, remaining: int) -> Any:
        return np.arange(20, 40)

    def advance(self, state: int, token: int) -> int:
        return state + 1


@pytest.mark.parametrize("within", [0.0, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_the_likeliest_are_those_of_the_highest_scores(engine: Any, masked: bool, within: float) -> None:
    rng, several = random.Random(4), 0
    for _ in range(8):
        some = [[rng.randrange(18 if masked else 20, 26) for _ in range(rng.randint(1, 6))] for _ in range(40)]
        some = [list(ids) for ids in dict.fromkeys(map(tuple, some))]
        mask = Among() if masked else None
        scores = [s.total for s in engine.score(PROMPT, some, constraint=mask, max_tokens=6, adapter="infer")]
        found = engine.likeliest(PROMPT, some, constraint=mask, max_tokens=6, adapter="infer", within=within)
        near = max(scores) - within
        assert {i for i, s in enumerate(scores) if s > near + 4e-3} <= {i for i, _ in found}
        for i, score in found:
            assert score.total == pytest.approx(scores[i], abs=2e-3) == math.fsum(score.tokens)
            assert score.total > near - 4e-3 and len(score.tokens) == len(some[i])
        totals = [score.total for _, score in found]
        assert totals == sorted(totals, reverse=True) and scores[found[0][0]] == pytest.approx(max(scores), abs=4e-3)
        several += len(found) > 1
    assert bool(several) == bool(within)


def test_the_likeliest_is_found_with_fewer_tokens_than_there_are(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = [[20, 21, 22, 23, 24, k] for k in range(40, 60)]
    engine.score(PROMPT, alike[:1])
    read: list[int] = []
    known = engine._eval
    monkeypatch.setattr(engine, "_eval", lambda lane, ids, last: read.append(len(ids)) or known(lane, ids, last))
    [(_, found)] = engine.likeliest(PROMPT, alike)
    assert len(read) <= 2 and sum(read) <= 6  # the prompt's last and five, not twenty times as many
    assert found.total == pytest.approx(max(s.total for s in engine.score(PROMPT, alike)), abs=2e-3)


def test_of_what_no_constraint_lets_be_written_none_is_likely(engine: Any) -> None:
    assert engine.likeliest(PROMPT, [[50, 51], [20, 50], [20, 21, 50]], constraint=Among()) == []
    [(best, _)] = engine.likeliest(PROMPT, [[20, 21], [20]], constraint=Among(), max_tokens=1)
    assert best == 1  # there is no room for the other
    for nothing in ([], [[20], []]):
        with pytest.raises(EngineError, match=r"there is nothing to choose from|an empty completion has no score"):
            engine.likeliest(PROMPT, nothing)


def test_scores_do_not_depend_on_what_was_cached(engine: Any) -> None:
    a, b = [33, 44, 2], [33, 90, 91, 2]
    together = engine.score(PROMPT, [a, b])
    engine.score([1, 2, 3], [[5, 6]])
    alone = [engine.score(PROMPT, [c])[0] for c in (b, a)]
    assert math.isclose(together[0].total, alone[1].total, abs_tol=2e-3)
    assert math.isclose(together[1].total, alone[0].total, abs_tol=2e-3)


def test_a_long_prompt_in_chunks_continues_right(engine: Any) -> None:
    long = (PROMPT * 70)[:650]
    whole = engine.generate(long, max_tokens=8, adapter="infer").ids
    engine.generate(long[:300], max_tokens=1, adapter="infer")
    assert engine.generate(long, max_tokens=8, adapter="infer").ids == whole


def test_a_saved_prefix_gives_the_same_continuation(engine: Any, tiny: tuple[Path, Any], tmp_path: Path) -> None:
    want = engine.generate(PROMPT, max_tokens=10, adapter="infer").ids
    engine._feed(engine.lane("infer"), PROMPT, 1)
    engine.save_prefix(tmp_path / "p", adapter="infer")
    engine.generate([9, 9, 9], max_tokens=3, adapter="infer")
    assert engine.load_prefix(tmp_path / "p", adapter="infer") == len(PROMPT)
    assert engine.lane("infer").tokens == PROMPT
    assert engine.generate(PROMPT, max_tokens=10, adapter="infer").ids == want


def test_a_prefix_of_another_adapter_or_a_damaged_one_is_refused(engine: Any, tmp_path: Path) -> None:
    engine._feed(engine.lane("infer"), PROMPT, 1)
    engine.save_prefix(tmp_path / "p", adapter="infer")
    with pytest.raises(ModelError, match="another model or adapter"):
        engine.load_prefix(tmp_path / "p", adapter=None)
    data = bytearray((tmp_path / "p").read_bytes())
    for at in (0, 10, len(data) // 2, len(data) - 1):
        bad = data.copy()
        bad[at] ^= 64
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ModelError):
            engine.load_prefix(tmp_path / "bad", adapter="infer")
    (tmp_path / "bad").write_bytes(data[:-5])
    with pytest.raises(ModelError, match="damaged"):
        engine.load_prefix(tmp_path / "bad", adapter="infer")


def test_a_prefix_of_another_model_of_the_same_shape_is_refused(
    engine: Any, tiny: tuple[Path, Any], tmp_path: Path
) -> None:
    engine._feed(engine.lane(None), PROMPT, 1)
    engine.save_prefix(tmp_path / "p")
    make.llama(tmp_path / "other.gguf", seed=9)
    assert (tmp_path / "other.gguf").stat().st_size == tiny[0].stat().st_size
    other = open_engine(engine.name, tmp_path / "other.gguf", threads=1)
    with pytest.raises(ModelError, match="another model or adapter"):
        other.load_prefix(tmp_path / "p")
    other.close()


def test_what_cannot_run_is_refused_in_one_line(engine: Any) -> None:
    with pytest.raises(EngineError, match="no adapter named 'x'"):
        engine.generate(PROMPT, max_tokens=1, adapter="x")
    with pytest.raises(EngineError, match="outside the vocabulary"):
        engine.generate([10**6], max_tokens=1)
    with pytest.raises(EngineError, match="empty prompt"):
        engine.generate([], max_tokens=1)
    with pytest.raises(ConfigError, match="max_tokens"):
        engine.generate(PROMPT, max_tokens=0)
    with pytest.raises(EngineError, match="no room"):
        engine.generate([5] * engine.context_length, max_tokens=1)
    assert len(engine.generate(PROMPT, max_tokens=3).ids) == 3  # and it still runs


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_is_no_model_is_refused(name: str, tmp_path: Path, tiny: tuple[Path, Any]) -> None:
    whole = tiny[0].read_bytes()
    for label, data in {"text": b"hello", "empty": b"", "cut": whole[:-4096], "head": whole[:200]}.items():
        path = tmp_path / label
        path.write_bytes(data)
        with pytest.raises(ModelError) as caught:
            open_engine(name, path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(ModelError, match="no such file"):
        open_engine(name, tmp_path / "none.gguf")


def test_an_adapter_of_another_shape_is_refused(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    from transformers import LlamaConfig

    other = LlamaConfig(hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=6,
                        num_key_value_heads=2)  # fmt: skip
    make.adapter(tmp_path / "a.gguf", other, seed=1)
    for name in ENGINES:
        with pytest.raises(ModelError, match="wrong shape"):
            open_engine(name, tiny[0], adapters={"infer": tmp_path / "a.gguf"})
        with pytest.raises(ModelError, match="not a LoRA adapter"):
            open_engine(name, tiny[0], adapters={"infer": tiny[0]})


def test_the_graph_we_write_is_valid_onnx(tiny: tuple[Path, Any]) -> None:
    import onnx

    from popi_edge.engines.onnx_graph import Builder
    from popi_edge.models.gguf import Gguf

    graph = Builder(Gguf(tiny[0]), level=4, hooks=["1.qkv"]).build()
    model = onnx.ModelProto.FromString(graph.serialize())
    assert model.ir_version == 10 and len(model.graph.node) == len(graph.nodes)
    assert {i.name for i in model.graph.input} >= {"x", "seqlens_k", "total", "first", "past.0.k"}
    names = {t.name for t in model.graph.initializer}
    assert set(graph.external) <= names


def test_streams_that_interleave_do_not_disturb_each_other(engine: Any) -> None:
    other = [11, 90, 33, 120]
    want = [list(engine.stream(p, max_tokens=10)) for p in (PROMPT, other)]
    one, two = engine.stream(PROMPT, max_tokens=10), engine.stream(other, max_tokens=10)
    got: list[list[int]] = [[], []]
    for _ in range(10):
        got[0] += [t for t in [next(one, None)] if t is not None]
        got[1] += [t for t in [next(two, None)] if t is not None]
    assert got == want


def test_threads_share_an_engine(engine: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    prompts = [[*PROMPT, 40 + i] for i in range(6)]
    want = [engine.generate(p, max_tokens=8).ids for p in prompts]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda p: engine.generate(p, max_tokens=8).ids, prompts)) == want
