"""popi-micro's runs: a warm start first, its end is what the rest is compared with; arms share it; tables add up."""

from __future__ import annotations

import html
import itertools
import json
import re
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popi_edge import config, prompts
from popi_edge.engines.onnx import OnnxEngine
from popi_edge.errors import ConfigError
from popi_export import bundle
from popi_training import arms, checking, popi_micro, train, world, world_eval, world_leak
from popi_training import recipe as recipes
from popi_training.joint import Joint
from popi_training.people import Person
from popi_training.rollout import rollout
from tests import tiny_training as small
from tests.test_train import edited, figures

pytestmark = pytest.mark.usefixtures("torch_as_before")
SMALL = (
    ("hidden = 64", "hidden = 32"), ("layers = 3", "layers = 2"), ("ffn = 192", "ffn = 64"),
    ("warmup = 10", "warmup = 2"), ("\nwarm = 1000", "\nwarm = 3"), ("steps = 1060", "steps = 5"),
    ("warm_generate = 1000", "warm_generate = 2"),
    ("batch = 64", "batch = 4"), ("group = 8", "group = 2"), ("pairs = 6", "pairs = 1"),
    ("dev_every = 100", "dev_every = 2"), ("dev_users = 60", "dev_users = 3"),
    ("checkpoint_every = 50", "checkpoint_every = 1"),
)  # fmt: skip
RECIPE = Path(__file__).parent.parent / "training" / "recipes" / "popi-micro.toml"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The committed recipe, smaller."""
    path = tmp_path / "micro.toml"
    path.write_text(RECIPE.read_text())
    for old, new in SMALL:
        edited(path, old, new)
    return path


def go_on(path: Path, out: Path, until: int) -> Joint:
    trainer = train.open_run(recipes.read(path), path, config.load())
    assert isinstance(trainer, Joint)
    train.run(trainer, out, until=until, minutes=None, tell=lambda *_: None)
    return trainer


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[n], b[n]) for n in a | b)


def test_the_warm_start_is_what_the_rest_is_compared_with_and_a_run_goes_on_over_its_end(
    recipe: Path, tmp_path: Path
) -> None:
    whole = go_on(recipe, tmp_path / "whole", 5).roles.state()
    for until in (2, 4, 5):
        cut = go_on(recipe, tmp_path / "cut", until).roles.state()
        if until == 4:
            warm = go_on(recipe, tmp_path / "warm", 3).roles.state()
            assert same(cut["start"], warm["infer"]) and same(cut["reference"], warm["generate"])
            assert not same(cut["start"], cut["infer"]) and not same(cut["reference"], cut["generate"])
    assert all(same(cut[role], whole[role]) for role in whole)
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    lines = figures(tmp_path / "whole")
    assert ["reward" in m for m in lines] == [False, False, False, True, True]
    assert ["dpo_loss" in m for m in lines] == [True, True, False, True, True]  # two steps of three
    assert lines[3]["kl"] == pytest.approx(0, abs=1e-4)


def test_a_pair_that_was_seen_before_is_no_other_number_to_a_run_that_goes_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of the world do come back: two do in the first 200 steps of the committed recipe."""
    people = popi_micro.people

    def some(read: recipes.Recipe, step: int) -> list[Person]:
        first, *others = people(read, step)
        again = people(read, 0)[0].targets[0]
        return [replace(first, targets=(again, *first.targets[1:])), *others]

    monkeypatch.setattr(popi_micro, "people", some)
    go_on(recipe, tmp_path / "whole", 5)
    for until in range(1, 6):
        go_on(recipe, tmp_path / "cut", until)
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")


def test_people_of_the_warm_start_have_few_signals_at_first_and_are_told_what_is_best(recipe: Path) -> None:
    read = recipes.read(recipe)
    first, later = popi_micro.people(read, 0), [p for s in range(3, 40) for p in popi_micro.people(read, s)]
    assert {p.id for p in first}.isdisjoint(p.id for p in later) and max(len(p.signals) for p in later) == 8
    assert checking.checked(read, recipe, config.load())["users"] == sum(
        len({p.id for p in popi_micro.people(read, step)}) for step in range(read.train.steps)
    )
    assert len(first) == len({p.id for p in first}) == 96 and {len(p.signals) for p in first} == {1}
    warming = popi_micro.people(recipes.parse(read.text.replace("warm = 3", "warm = 4"), "it"), 3)
    assert [len(p.signals) for p in warming[:8]] == [*range(1, 8), 1] and len({p.id for p in warming}) == 13
    assert all(b.signals[: len(a.signals)] == a.signals for a, b in itertools.pairwise(warming[:7]))
    assert len({p.id for p in first if p.targets}) == len({p.id for p in warming if p.targets}) == read.train.batch
    shared = [t.prompt for p in warming[:7] for t in p.targets]
    assert 4 < len(shared) == len(set(shared)) <= world.TARGETS and all(len(p.targets) < 3 for p in warming[:7])
    law = world.bayes()
    for p in warming:
        each = [law.posterior(p.signals[:k], "any") for k in range(1, len(p.signals) + 1)]
        said = law.summaries(np.array(each))
        assert p.oracle == world.say(said[-1]) and len(p.known) == len(each)
        assert all(world.follow(said[-1], t) > 0 for t in p.targets)
        means = np.array([posterior @ law.types for posterior in each])
        degrees = np.array([[dict(s).get(a, 0) for a in range(6)] for s in said])
        assert np.allclose(p.known, np.concatenate([means, degrees / 2], 1))
    assert not any(p.known for p in later[-24:])
    assert all(p.oracle == world.say(world.truth(world.draw(p.id.split(":")[1], "train")[1])) for p in later[-24:])


def test_the_inference_model_may_be_taught_words_that_the_generator_never_hears(recipe: Path) -> None:
    text = recipe.read_text().replace("[joint]", "[joint]\nother_words = true", 1)
    read, plain = recipes.parse(text, "it"), recipes.read(recipe)
    for step in range(3):
        made, same = popi_micro.people(read, step), popi_micro.people(plain, step)
        assert [world.read(p.oracle) for p in made] == [world.read(p.heard) for p in made]
        assert [p.heard for p in made] == [p.oracle for p in same] == [p.heard for p in same]
        assert [replace(p, oracle=q.oracle) for p, q in zip(made, same, strict=True)] == same
        assert sum(p.oracle != p.heard for p in made) > len(made) / 2
    trainer = popi_micro.open_run(read, "cpu")
    for person in made[:8]:
        told = trainer._told(person)
        assert told.texts == [person.heard] and trainer.said(told.draws[0]) == person.oracle
    with pytest.raises(ConfigError, match=r"joint\.other_words needs data\.world and joint\.warm"):
        recipes.parse(text.replace("warm = 3", "warm = 0").replace("warm_generate = 2", "warm_generate = 0"), "it")


def test_of_every_other_attribute_the_inference_model_may_know_only_a_word_that_the_generator_never_hears(
    recipe: Path,
) -> None:
    text = recipe.read_text().replace("[joint]", "[joint]\nunheard_words = true", 1)
    read, plain = recipes.parse(text, "it"), recipes.read(recipe)
    named, heard = set[str](), set[str]()
    for step in range(3):
        made, same = popi_micro.people(read, step), popi_micro.people(plain, step)
        assert [world.read(p.oracle) for p in made] == [world.read(p.heard) for p in made]
        assert [replace(p, oracle=q.oracle) for p, q in zip(made, same, strict=True)] == same
        named |= {w for p in made for w in world.words(p.oracle) if w in world.SAID}
        heard |= {w for p in made for w in world.words(p.heard) if w in world.SAID}
    poles = [pole["summary"] for attribute in world.WORLD["attributes"].values() for pole in attribute]
    assert heard == {first for first, _ in poles}
    assert named == {said[k // 2 % 2] for k, said in enumerate(poles)}
    with pytest.raises(ConfigError, match=r"joint\.unheard_words needs data\.world and joint\.warm"):
        recipes.parse(text.replace("warm = 3", "warm = 0").replace("warm_generate = 2", "warm_generate = 0"), "it")
    with pytest.raises(ConfigError, match=r"joint\.other_words teaches the words .* set one"):
        recipes.parse(text.replace("unheard", "other_words = true\nunheard", 1), "it")


def test_half_of_the_replies_that_are_trained_on_have_their_words_in_any_order_and_mean_the_same(recipe: Path) -> None:
    read, law = recipes.read(recipe), world.bayes()
    kept, seen = list[bool](), set[tuple[str, ...]]()
    for person in (p for step in range(3, 43) for p in popi_micro.people(read, step)):
        drawn, _ = world.draw(person.id.split(":")[1], "train")
        assert np.array_equal(law.posterior(person.signals), law.posterior(drawn.signals))
        for ours, theirs in zip((*person.signals, *person.targets), (*drawn.signals, *drawn.targets), strict=True):
            for field in ("chosen", "rejected", "response"):
                one, other = getattr(ours, field, "").split(), getattr(theirs, field, "").split()
                assert sorted(one) == sorted(other)
                kept += [one == other] * bool(one)
                seen.add(tuple(w if w not in world.MARKERS else "{}" for w in one))
    assert 0.45 < sum(kept) / len(kept) < 0.6
    heldout = [f for frames in world.WORLD["heldout_frames"].values() for f in frames]
    trained = [f for frames in world.WORLD["frames"].values() for f in frames]
    in_any_order = {tuple(sorted(f.split())) for f in trained}
    assert in_any_order.isdisjoint(tuple(sorted(f.split())) for f in heldout)  # so that none of these can come about
    assert {tuple(f.split()) for f in trained} < seen


def test_the_truth_can_be_imitated_after_the_warm_start_where_no_numbers_are_told(
    recipe: Path, tmp_path: Path
) -> None:
    edited(recipe, 'schedule = "simultaneous"', 'schedule = "sft"')
    go_on(recipe, tmp_path / "run", 5)
    assert ["dense" in m for m in figures(tmp_path / "run")] == [True] * 3 + [False] * 2


def test_several_processes_are_refused_at_the_start(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        popi_micro.open_run(recipes.read(recipe), "cpu")


def test_an_arm_has_its_own_rates_whatever_the_warm_start_had(recipe: Path, tmp_path: Path) -> None:
    go_on(recipe, tmp_path / "warm", 3)
    edited(recipe, "lr = 2e-4", "lr = 8e-4")
    edited(recipe, "lr_generate = 2e-4", "lr_generate = 5e-4")
    trainer = arms.run_arm(recipes.read(recipe), "simultaneous", 1, tmp_path / "arm", tmp_path / "warm")
    assert {g["base_lr"] for g in trainer.optimizer.param_groups} == {8e-4, 5e-4}
    assert max(m["lr"] for m in figures(tmp_path / "arm")) > 1e-4


def test_others_who_want_the_same_are_there_where_the_identity_term_asks_for_them(recipe: Path, tmp_path: Path) -> None:
    read = recipes.read(recipe)
    assert not any(p.alike for p in popi_micro.people(read, 4))
    edited(recipe, "beta = 0.5", "beta = 0.5\nidentity = 1.0\nalike = 2")
    read = recipes.read(recipe)
    assert not any(p.alike for p in popi_micro.people(read, 2))  # not while warming up
    for person in popi_micro.people(read, 4):
        assert [len(s) for s in person.alike] == [len(person.signals)] * 2 and person.signals not in person.alike
    go_on(recipe, tmp_path / "run", 5)
    lines = figures(tmp_path / "run")
    assert all(m["identity"] > 0 for m in lines[3:]) and "identity" not in lines[0]


def test_the_attacker_of_the_world_knows_whose_a_summary_is_by_the_models_own_likelihood(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both of a couple want the same; the same signals on both sides would leave him at chance."""
    trainer = go_on(recipe, tmp_path / "run", 4)
    both = world_leak.couples(6)
    assert all(a.oracle == b.oracle and a.signals != b.signals for a, b in both)
    assert all(len(a.signals) == len(b.signals) for a, b in both)
    own = [p for pair in both for p in pair]
    draws = world_leak.drawn(trainer, own, "infer", 1.0)
    found = world_leak.likelihoods(trainer, own, draws, "infer")
    assert np.allclose(found, [sum(d.logprobs) for d in draws], atol=1e-3)
    monkeypatch.setattr(world_leak, "couples", lambda count: [(a, a) for a, _ in both[:count]])
    same = world_leak.measure(trainer, 6)
    assert same["same"] == 6 and same["likeliest"]["right"]["share"] == same["drawn"]["right"]["share"] == 0.5
    monkeypatch.undo()
    for role in ("infer", "start"):
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "run"), "--couples", "4", "--role", role, "--json"])
        world_leak.main()
        table = json.loads(capsys.readouterr().out)
        assert table["couples"] == 4 and 0 <= table["accuracy"]["accuracy"] <= 1
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="world_leak: "):
        world_leak.main()


def test_the_attacker_of_the_world_has_summaries_drawn_as_the_run_draws_them(recipe: Path, tmp_path: Path) -> None:
    edited(recipe, "beta = 0.5", "beta = 0.5\nmask = false")
    trainer = go_on(recipe, tmp_path / "run", 4)
    own = [p for pair in world_leak.couples(2) for p in pair]
    draws = world_leak.drawn(trainer, own, "infer", 1.0)
    with trainer.roles.playing("infer") as model:
        size = model.config.vocab_size
    assert all(len(allowed) == size for d in draws for allowed in d.allowed)
    found = world_leak.likelihoods(trainer, own, draws, "infer")
    assert np.allclose(found, [sum(d.logprobs) for d in draws], atol=1e-3)


def test_who_only_counts_counts() -> None:
    size, tone = ([p["markers"][0] for p in world.WORLD["attributes"][a]] for a in ("size", "tone"))
    common: dict[str, Any] = {"at": "1970-01-01T00:00:00Z", "source": "world"}
    chosen = [f"{size[0]} {tone[0]}", f"{size[0]} {tone[1]}"]
    told = [
        world.Comparison("x", chosen[0], chosen[1], id="1", **common),
        world.Comparison("x", f"{size[1]} {tone[0]}", f"{size[0]} {tone[1]}", id="2", **common),
        world.Rating("x", f"{size[1]} {tone[0]}", 0.9, id="3", **common),
        world.Rating("x", f"{size[0]} {tone[0]}", 0.2, id="4", **common),
    ]
    # tone: first pole +1 +1, +1 +1, +1, -1 = 4; size: 0, second pole 2, 1, 1 = 4 for the second pole
    assert world.counted(told) == ((0, -2), (1, 2))
    assert world.counted(told[:1]) == ((1, 2),)


def test_the_table_of_a_run_is_what_each_person_gives_alone(recipe: Path, tmp_path: Path) -> None:
    trainer = go_on(recipe, tmp_path / "run", 5)
    table = world_eval.evaluate(trainer, "users", 4)
    people = [world.draw(str(i), "users")[0] for i in range(4)]
    right = []
    for p in people:
        (z,) = world_eval.written(trainer, [p], "infer")
        for t in p.targets:
            m = float(trainer.ratios("generate", [(z, t)]).detach() - trainer.ratios("reference", [("", t)]).detach())
            right.append(0.5 if m == 0 else float(m > 0))
    assert table["rows"]["summary"] == right and table["conditions"]["summary"]["accuracy"] == np.mean(right)
    assert table["conditions"]["oracle_summary"]["tokens"] > 3 and table["pairs"] == 32
    law = world.bayes()
    for name, part in (("bayes", "users"), ("bayes_any", "any")):
        exact = []
        for p in people:
            q = law.posterior(p.signals, part)
            sure = [law.predict(q, t) - 0.5 for t in p.targets]
            exact += [0.5 if abs(x) < 1e-9 else float(x > 0) for x in sure]
        assert table["conditions"][name]["accuracy"] == pytest.approx(np.mean(exact))


def test_signals_in_context_and_models_that_learnt_nothing_are_conditions_too(recipe: Path, tmp_path: Path) -> None:
    trainer = go_on(recipe, tmp_path / "run", 5)
    table, after, before = world_eval.examined(trainer, "users", 3)
    fresh, tokenizer = popi_micro.drawn(trainer.recipe, "cpu"), trainer.reader.tokenizer
    person, _ = world.draw("1", "users")

    def m(roles: Any, target: Any) -> float:
        found = []
        for role, signals in (("generate", person.signals), ("reference", None)):
            with torch.no_grad(), roles.playing(role) as model:
                context = prompts.generate_ids(tokenizer, target.prompt, signals=signals)
                for reply in (target.chosen, target.rejected):
                    ids = prompts.reply_ids(tokenizer, reply)
                    logits = model(torch.tensor([context + ids])).logits[0].log_softmax(-1)
                    found.append(sum(float(logits[len(context) + i - 1, t]) for i, t in enumerate(ids)))
        return (found[0] - found[1]) - (found[2] - found[3])

    each = len(person.targets)
    listed = [row["margins"]["raw"][0] for row in after[each : 2 * each]]
    assert listed == pytest.approx([m(trainer.roles, t) for t in person.targets], abs=2e-3)
    untrained = [m(fresh, t) for t in person.targets]
    assert all(abs(a - b) > 1e-3 for a, b in zip(listed, untrained, strict=True))
    behind = world_eval._read(trainer, [person, world.opposite(person)], fresh)
    assert behind.own.tolist() == pytest.approx(untrained, abs=2e-3)
    with fresh.playing("infer") as model:
        asked = [trainer.reader.prompt(person.signals)]
        ((drawn,),) = rollout(model, trainer.reader, asked, group=1, temperature=0.0, mask=trainer.recipe.joint.mask)
    assert world_eval.written(trainer, [person], "infer", fresh) == [trainer.said(drawn)]
    tokens = len(tokenizer.encode(prompts.raw_system(person.signals, tokenizer)))
    assert 0 < table["conditions"]["raw"]["tokens"] == table["conditions"]["raw_untrained"]["tokens"] < 3 * tokens
    assert {t["a"] for t in table["tests"]} == {"summary", "raw", "oracle_summary"}
    long = [len(tokenizer.encode(t.chosen)) - len(tokenizer.encode(t.rejected))
            for i in range(3) for t in world.draw(str(i), "users")[0].targets]  # fmt: skip
    assert table["baselines"]["longer"]["accuracy"] == np.mean([0.5 if n == 0 else n > 0 for n in long])
    with trainer.roles.playing("start"):
        assert [b["text"] for b in before] == [
            z for z in world_eval.written(trainer, [world.draw(str(i), "users")[0] for i in range(3)], "start")
            for _ in range(each)
        ]


def test_one_command_leaves_two_models_that_an_engine_opens_table_and_report(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    edited(recipe, "hidden = 32", "hidden = 64")  # heads of 8 are too small for ONNX Runtime
    code, out, err = small.popi(monkeypatch, capsys, "train", recipe, "--out", run, "--finish", 2, "--json")
    assert code == 0, err
    made = json.loads(out)
    manifest = json.loads((run / "bundle" / "manifest.json").read_text())
    seconds = sum(m["seconds"] for m in train.read_metrics(run / train.METRICS))
    assert manifest["training"]["seed"] == recipes.read(recipe).seed
    assert manifest["training"]["seconds"] == round(seconds) and manifest["training"]["commit"]
    trainer = world_eval.open_trained(run)
    person, _ = world.draw("0", "users")
    ids, told = list(trainer.reader.prompt(person.signals)), list(trainer.reader.tokenizer.encode(person.oracle))
    for role in ("infer", "generate"):
        file = run / "bundle" / f"{role}.gguf"
        assert bundle.entry(file) == manifest["roles"][role]
        with torch.no_grad(), trainer.roles.playing(role) as model:
            logits = model(torch.tensor([ids + told])).logits[0, len(ids) - 1 :].log_softmax(-1)
            theirs = [float(logits[i, t]) for i, t in enumerate(told)]
        with closing(OnnxEngine(file, adapters={})) as engine:
            (found,) = engine.score(ids, [told])
            assert found.total == pytest.approx(sum(theirs), abs=1e-3)
    page = Path(made["report"]).read_text("utf-8")
    assert "No summaries from before" not in page and "there is no summaries.jsonl" not in page
    said = json.loads((run / "eval" / "finish" / "summaries.jsonl").read_text().splitlines()[0])["text"]
    began = json.loads((run / "before.jsonl").read_text().splitlines()[0])["text"]
    assert html.escape(said) in page and html.escape(began) in page
    code, _, err = small.popi(monkeypatch, capsys, "bundle", "verify", run / "bundle")
    assert code == 1 and err.count("\n") == 1


def test_the_command_evaluates_a_run_in_its_world(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(recipe, tmp_path / "run", 4)
    code, out, _ = small.popi(monkeypatch, capsys, "eval", tmp_path / "run", "--limit", 2, "--json")
    found = json.loads(out)
    assert code == 0 and [p["part"] for p in found["parts"]] == ["users", "combinations", "phrasings"]
    assert {"none", "summary", "oracle_summary", "bayes"} <= set(found["conditions"]) and found["step"] == 4
    code, _, err = small.popi(monkeypatch, capsys, "eval", tmp_path / "run", "--data", recipe, "--format", "corpus")
    assert code == 2 and "its own world, without --data, --format" in err
    listing = tmp_path / "listing.jsonl"
    code, _, err = small.popi(monkeypatch, capsys, "eval", tmp_path / "run", "--limit", 2, "--summaries", listing)
    rows = [json.loads(line) for line in listing.read_text().splitlines()]
    assert code == 0 and len(rows) == found["pairs"] and len({r["row"] for r in rows}) == len(rows)
    own = np.array([r["margins"]["summary"][0] for r in rows])
    assert np.mean(np.where(own == 0, 0.5, own > 0)) == pytest.approx(found["conditions"]["summary"]["accuracy"])
    monkeypatch.setattr(world_eval, "open_trained", lambda *_: pytest.fail("it was evaluated"))
    (tmp_path / "file").write_text("")
    code, _, err = small.popi(monkeypatch, capsys, "eval", tmp_path / "run", "--out", tmp_path / "file" / "out")
    assert (code, err) == (1, f"popi: cannot write to {tmp_path / 'file' / 'out'}: Not a directory\n")
    code, _, err = small.popi(monkeypatch, capsys, "eval", tmp_path / "run", "--limit", 10**9)
    assert code == 1 and err.startswith("popi: limit is 1000000000; of the controlled world at most 100,000 people")
    code, _, err = small.popi(monkeypatch, capsys, "eval", tmp_path / "nowhere")
    assert code == 1 and err.startswith("popi: cannot read")


def test_arms_share_their_warm_start_and_are_compared(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["arms", str(recipe), "--out", str(tmp_path / "arms"), "--seeds", "1", "2", "--users", "3", "--json"]
    monkeypatch.setattr(sys, "argv", [*words, "--arms", "frozen", "sequential", "shuffled_rewards"])
    arms.main()
    found = json.loads(capsys.readouterr().out)
    for seed in (1, 2):
        folder = tmp_path / "arms" / f"seed-{seed}"
        begun = [train.read_checkpoint(folder / a / train.CHECKPOINT)["adapters"] for a in ("frozen", "sequential")]
        assert same(begun[0]["start"], begun[1]["start"]) and same(begun[0]["generate"], begun[1]["reference"])
        assert not same(begun[1]["generate"], begun[1]["reference"])
        steps = [train.read_metrics(folder / a / train.METRICS)[-1]["step"] for a in ("frozen", "sequential")]
        assert steps == [5, 7]
    assert {e["condition"] for e in found["table"]} >= {"bayes", "frozen", "sequential", "warm_summary", "none"}
    assert len(found["verdicts"]) == 9 and all(v["holm"] >= v["p"] for v in found["verdicts"])
    monkeypatch.setattr(arms.train, "run", lambda *_: pytest.fail("it was there already"))
    monkeypatch.setattr(arms, "warm_start", lambda *_: None)
    monkeypatch.setattr(sys, "argv", [*words, "--arms", "frozen", "sequential", "shuffled_rewards"])
    arms.main()
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--seeds", "1", "1"], "--seeds: one comes twice"),
        (["--arms", "frozen", "frozen"], "--arms: one comes twice"),
        (["--users", "1"], "two users"),
    ],
)
def test_one_run_is_not_counted_twice_and_one_person_is_too_few(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    """The same seed twice has no spread over the seeds, and so a p of 0."""
    monkeypatch.setattr(arms, "measured", lambda *_: pytest.fail("it was begun"))
    monkeypatch.setattr(sys, "argv", ["arms", str(recipe), "--out", str(tmp_path / "arms"), *words])
    with pytest.raises(SystemExit, match=f"arms: .*{why}"):
        arms.main()


@pytest.mark.parametrize("text", [
    '[{"part": ', '[{"part": "users", "rows": {}}]', "7",
    '[{"rows": {}}, {"rows": {}}, {"rows": {}}]', '[{"worth_rows": {}}]',  # of an older program; of one part alone
])  # fmt: skip
def test_a_damaged_or_older_table_of_an_arm_is_one_line(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(arms, "warm_start", lambda *_: None)
    table = tmp_path / "seed-1" / "frozen" / "table-3.json"
    table.parent.mkdir(parents=True)
    table.write_text(text)
    words = ["--out", str(tmp_path), "--seeds", "1", "--arms", "frozen", "--users", "3"]
    monkeypatch.setattr(sys, "argv", ["arms", str(recipe), *words])
    with pytest.raises(SystemExit, match=r"table-3\.json: damaged"):
        arms.main()


@pytest.mark.parametrize(("values", "p"), [([1, 2, 3, 4, 5], 0.01324), ([0.1, -0.1], 1.0), ([1.0, 1.1], 0.0303)])
def test_the_t_test_gives_what_tables_give(values: list[float], p: float) -> None:
    """t = 4.243 with 4 degrees of freedom; 0; and 21 with one, whose p is 1 − 2/π arctan 21."""
    assert arms.t_test(np.array(values)) == pytest.approx(p, abs=2e-4)


def test_a_recipe_without_a_world_or_a_warm_start_has_no_arms(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(recipe, "warm = 3\nwarm_generate = 2", "warm = 0")
    monkeypatch.setattr(sys, "argv", ["arms", str(recipe), "--out", "out"])
    with pytest.raises(SystemExit, match="from a warm start"):
        arms.main()
    edited(recipe, "world = true", "world = false")
    with pytest.raises(ConfigError, match=r"data\.world, scratch\.hidden"):
        recipes.read(recipe)


def test_the_first_minute_of_the_committed_recipe_learns_to_read_a_signal(tmp_path: Path) -> None:
    """Up to about 0.8 nats a token only the form of a summary is learnt; below that what the signal says is in it."""
    trainer = go_on(RECIPE, tmp_path / "run", 100)
    losses = [m["loss"] for m in train.read_metrics(tmp_path / "run" / train.METRICS)]
    assert losses[0] > 3 and np.mean(losses[-5:]) < 0.6
    people = [world.draw(str(i), "dev", 1)[0] for i in range(40)]
    told = [world_eval.poles(world.counted(p.signals)) for p in people]
    said = [world_eval.poles(world.read(z)) for z in world_eval.written(trainer, people, "infer")]
    assert np.mean([len(a & b) / len(a | b) if a | b else 1.0 for a, b in zip(told, said, strict=True)]) > 0.5


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("pairs = 8", "joint.pairs is 8 and 1 to learn from (joint.dpo_pairs); people of the world have 8 pairs"),
        ("pairs = 9\nshared_pairs = true", "joint.pairs is 9; people of the world have 8 pairs"),
        ("pairs = 8\nshared_pairs = true", ""),
    ],
)
def test_more_pairs_than_people_have_are_refused_before_the_warm_start(recipe: Path, lines: str, why: str) -> None:
    edited(recipe, "pairs = 1", lines)
    if not why:
        assert recipes.read(recipe).joint.pairs == 8
        return
    with pytest.raises(ConfigError, match=re.escape(f"micro.toml: {why}")):
        recipes.read(recipe)


def test_a_model_too_small_for_what_it_is_held_to_is_refused(recipe: Path) -> None:
    edited(recipe, "hidden = 32\nlayers = 2\nheads = 4\nkv_heads = 4", "hidden = 10\nheads = 1\nkv_heads = 1")
    with pytest.raises(ConfigError, match=r"micro\.toml: scratch\.hidden is 10, but joint\.dense reads 12 numbers"):
        recipes.read(recipe)
    edited(recipe, "dense = 5.0", "dense = 0.0")
    assert recipes.read(recipe).scratch.hidden == 10


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('world = true\ncorpus = "corpus"', "data.corpus"), ("world = true\nwide = true", "data.wide"),
        ('world = true\ndimensions = ["tone"]', "data.dimensions"), ('world = true\nfile = "a.jsonl"', "data.file"),
        ('world = true\n[base]\nname = "other"', "base.name"), ('world = true\n[lora]\nstart = "a.gguf"', "lora.start"),
        ("world = true\n[lora]\nrank = 4", "lora.rank"), ("silent = 0.0\nmost = 4", "users.most"),
        ("silent = 0.0\nkinds = { rating = 1.0 }", "users.kinds"),
    ],
)  # fmt: skip
def test_a_key_that_means_nothing_in_the_world_is_refused(recipe: Path, line: str, key: str) -> None:
    edited(recipe, line.partition("\n")[0], line)
    with pytest.raises(ConfigError, match=re.escape(f"micro.toml: {key} means nothing with data.world")):
        recipes.read(recipe)
