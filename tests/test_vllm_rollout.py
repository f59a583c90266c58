"""What vLLM would draw is what transformers draws: through a stand-in for vLLM that reads the adapter's files, runs the
mask and samples by itself (``tests/vllm_stand_in.py``). vLLM itself is not run: it needs a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popi_edge import config
from popi_edge.errors import ConfigError, EngineError
from popi_training import folder as module
from popi_training import recipe as recipes
from popi_training import train
from popi_training.joint import Joint
from popi_training.loss import token_logprobs
from popi_training.pack import pack
from popi_training.rollout import Draw, How, TransformersRollouts
from popi_training.vllm_rollout import VllmRollouts
from popi_training.warm import Reader
from tests import tiny_training as small
from tests import vllm_stand_in
from tests.test_folder import folder
from tests.test_joint import TABLE, shaken
from tests.test_train import edited, figures

pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a tiny base and a joint recipe that wants vLLM."""
    place = tmp_path_factory.mktemp("vllm")
    small.corpus(place / "corpus")
    folder(place / "base", request.param)
    (place / "recipe.toml").write_text(small.RECIPE.format(
        base="base", sha256=module.folder_sha256(place / "base"), corpus="corpus", steps=2, lr=0.01, every=2
    ))  # fmt: skip
    edited(place / "recipe.toml", 'name = "small"', 'name = "small"\nmethod = "joint"\nrole = "both"')
    table = TABLE.format(schedule="simultaneous") + 'rollout = "vllm"\n'
    (place / "recipe.toml").write_text((place / "recipe.toml").read_text() + table)
    return place


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's place is taken; its settings are those from before afterwards."""
    for name, value in vllm_stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, value)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.setenv(name, "1")
    return vllm_stand_in.LLM


def opened(made: Path) -> Joint:
    trainer = train.open_run(recipes.read(made / "recipe.toml"), made / "recipe.toml", config.load())
    assert isinstance(trainer, Joint) and isinstance(trainer.rollouts, VllmRollouts)
    return trainer


def drawn(trainer: Joint, rollouts: Any, **changes: Any) -> list[list[Draw]]:
    asked = [trainer.reader.prompt(p.signals) for p in trainer.make(0)]
    seeds = changes.pop("seeds", list(range(len(asked))))
    how = How(**{"group": 2, "temperature": 1.0, "mask": True} | changes)
    found: list[list[Draw]] = rollouts.draw(trainer.roles, trainer.reader, asked, seeds, how)
    assert [len(draws) for draws in found] == [how.group] * len(asked)
    return found


def same(one: list[list[Draw]], other: list[list[Draw]]) -> bool:
    """Whether the ids are the same; then all else is too."""
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    if any(a.ids != b.ids for a, b in pairs):
        return False
    for a, b in pairs:
        assert a.finished == b.finished and len(a.allowed) == len(b.allowed) == len(a.ids)
        assert all(np.array_equal(p, q) for p, q in zip(a.allowed, b.allowed, strict=True))
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    return True


def random(trainer: Joint, seed: int, scale: float = 0.1) -> None:
    """Adapters at random."""
    rng, state = np.random.default_rng(seed), trainer.roles.state()
    trainer.roles.load({r: {n: rng.normal(0, scale, a.shape).astype(np.float32) for n, a in s.items()}
                        for r, s in state.items()})  # fmt: skip


@pytest.mark.parametrize("mask", [True, False])
def test_the_likeliest_summaries_are_those_of_transformers_and_the_adapter_matters(made: Path, mask: bool) -> None:
    trainer = opened(made)
    bare = drawn(trainer, TransformersRollouts(), temperature=0.0, mask=mask)  # B is zero: the base alone
    assert same(drawn(trainer, trainer.rollouts, temperature=0.0, mask=mask), bare)
    random(trainer, 5)
    ours, theirs = (drawn(trainer, r, temperature=0.0, mask=mask) for r in (trainer.rollouts, TransformersRollouts()))
    assert same(ours, theirs) and not same(ours, bare)


def test_every_draw_is_of_the_adapter_as_it_is_then_and_leaves_no_files(made: Path, stand_in: Any) -> None:
    trainer, seen = opened(made), []
    for seed in (1, 2, 3):
        random(trainer, seed)
        seen.append(drawn(trainer, trainer.rollouts, temperature=0.0))
        assert same(seen[-1], drawn(trainer, TransformersRollouts(), temperature=0.0))
    assert not same(seen[0], seen[1]) and not same(seen[1], seen[2])
    (engine,) = stand_in.made
    assert [r.lora_int_id for r in engine.requests] == [1, 2, 3]
    assert len({r.lora_name for r in engine.requests}) == 3
    assert not any(Path(r.lora_path).exists() for r in engine.requests)


def test_what_was_drawn_has_the_log_probabilities_that_scoring_gives(made: Path) -> None:
    trainer = shaken(opened(made))
    for person, group in zip(trainer.make(0), drawn(trainer, trainer.rollouts, group=3), strict=True):
        prompt = trainer.reader.prompt(person.signals)
        with torch.no_grad(), trainer.roles.playing("infer") as model:
            scored = token_logprobs(model, [pack([d.sample(prompt) for d in group])])[0]
        assert scored.tolist() == pytest.approx([p for d in group for p in d.logprobs], abs=1e-4)
        assert len({d.ids for d in group}) > 1
    again, other = (drawn(trainer, trainer.rollouts, group=3, seeds=s) for s in ([0, 1, 2], [7, 8, 9]))
    assert same(again, drawn(trainer, trainer.rollouts, group=3)) and not same(again, other)


def test_the_mask_holds_however_wild_the_model_is(made: Path) -> None:
    trainer = opened(made)
    random(trainer, 4, scale=1.0)
    reader, found = trainer.reader, [d for g in drawn(trainer, trainer.rollouts, group=4, temperature=2.0) for d in g]
    for d in found:
        assert len(d.ids) <= reader.limits["summary_tokens"] + 1
        assert d.finished and d.ids[-1] in reader.tokenizer.eos_ids
        assert not set(d.ids[:-1]) & set(reader.tokenizer.eos_ids)
        assert written(reader, d)
    free = [d for g in drawn(trainer, trainer.rollouts, group=4, temperature=2.0, mask=False) for d in g]
    words = trainer.roles.model.config.vocab_size  # type: ignore[attr-defined]
    assert all(np.array_equal(a, np.arange(words)) for d in free for a in d.allowed)
    assert not all(written(reader, d) for d in free)


def written(reader: Reader, draw: Draw) -> bool:
    """Whether the closed vocabulary has these tokens in this order, told by itself alone."""
    state, limit = reader.vocabulary.start(), reader.limits["summary_tokens"]
    for i, token in enumerate(draw.ids):
        if token not in reader.vocabulary.allowed(state, limit - i):
            return False
        if token not in reader.tokenizer.eos_ids:
            state = reader.vocabulary.advance(state, token)
    return True


def no_gpu(**_: Any) -> None:
    raise RuntimeError("no CUDA here\nat all")


def test_an_engine_that_does_not_mask_or_does_not_start_is_an_error(made: Path, stand_in: Any) -> None:
    trainer = opened(made)
    random(trainer, 4, scale=1.0)
    drawn(trainer, trainer.rollouts)
    stand_in.made[0].processors.clear()
    with pytest.raises(EngineError, match="which the mask forbids"):
        drawn(trainer, trainer.rollouts, temperature=2.0)
    broken = opened(made)
    broken.rollouts._library.LLM = no_gpu  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"the engine does not start on base: no CUDA here$"):
        drawn(broken, broken.rollouts)
    with pytest.raises(ValueError, match="a rollout needs"):
        drawn(trainer, trainer.rollouts, group=0)


def test_a_joint_run_trains_on_what_it_draws(made: Path, tmp_path: Path, stand_in: Any) -> None:
    trainer = opened(made)
    before = trainer.roles.state()
    train.run(trainer, tmp_path / "run", until=2, minutes=None, tell=lambda *_: None)
    after = trainer.roles.state()
    for role in ("infer", "generate"):
        assert any((before[role][n] != after[role][n]).any() for n in before[role])
    (engine,) = stand_in.made
    assert [r.lora_int_id for r in engine.requests] == [1, 2]
    lines = figures(tmp_path / "run")
    assert [m["step"] for m in lines] == [1, 2] and all(np.isfinite(m["loss"]) for m in lines)


def test_what_vllm_cannot_do_is_refused_in_one_line(
    made: Path, tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, recipe = (made / "recipe.toml").read_text(), recipes.read(made / "recipe.toml")
    for old, new, why in (
        ('"vllm"', '"tpu"', "joint.rollout is 'tpu'; it must be one of transformers, vllm$"),
        ("[lora]", "[lora]\nfull = true", 'joint.rollout "vllm" needs LoRA adapters'),
        ("[joint]", "[joint]\ntemperature = 3", 'joint.temperature is 3; with joint.rollout "vllm" at most 2'),
    ):
        with pytest.raises(ConfigError, match=why):
            recipes.parse(text.replace(old, new), "r.toml")
    with pytest.raises(ConfigError, match=r"must be a Hugging Face folder, not tiny\.gguf"):
        VllmRollouts(recipe, tiny[0])
    full = made / "full.toml"
    full.write_text(text.replace("[lora]", "[lora]\nfull = true").replace('"vllm"', '"transformers"'))
    whole = train.open_run(recipes.read(full), full, config.load())
    assert isinstance(whole, Joint) and isinstance(whole.rollouts, TransformersRollouts)
    with pytest.raises(ConfigError, match="these roles have none"):
        drawn(whole, VllmRollouts(recipe, made / "base"))
    with monkeypatch.context() as several:
        several.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="draws in one process"):
            VllmRollouts(recipe, made / "base")
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"^joint.rollout vllm: vllm not installed; run: pip install .*CUDA\)$"):
        opened(made)
