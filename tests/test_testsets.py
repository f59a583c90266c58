"""Test sets from the corpus hold out what they say, in pairs of opposite users; the probe reads what is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from popi_edge.errors import ConfigError
from popi_edge.signals import Comparison, Signal
from popi_training import behaviour, corpus, probe, splits, testsets
from popi_training.evaluate.conditions import draw_donors
from popi_training.evaluate.data import Row, load
from popi_training.users import Mix, User, Want
from tests import tiny_training as small

OURS, HELD, SPLIT = corpus.load(), corpus.load(heldout=True), splits.read()
TRAIN_PROMPTS = {t for i, t in OURS.prompts.items() if i not in SPLIT.dev_prompts}


def rows(part: str, count: int = 60) -> tuple[Row, ...]:
    return load(corpus.FOLDER, "corpus", limit=count, part=part).rows


def asked(signal: Signal) -> str | None:
    return getattr(signal, "prompt", None)


@pytest.mark.parametrize("part", testsets.SETS)
def test_nobody_lends_a_summary_of_signals_about_the_very_prompt(part: str) -> None:
    """Not of a conversation that begins with it either."""
    found = rows(part, 120)
    for row, d in zip(found, draw_donors(found, 0), strict=True):
        for k in (d.opposite, d.shuffled, d.shuffled_too):
            assert row.prompt not in {text for s in found[k].signals for text in s.texts()}


@pytest.mark.parametrize("part", [*testsets.SETS, "kind-edit", "signals-8"])
def test_users_come_in_opposite_pairs_on_one_target(part: str) -> None:
    found = rows(part)
    assert len(found) == 60
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert (one.prompt, one.chosen, one.rejected) == (other.prompt, other.rejected, other.chosen)
        assert (one.oracle, one.opposite_oracle) == (other.opposite_oracle, other.oracle)
        assert (one.mirror, other.mirror) == (other.id, one.id)
        for row in (one, other):
            assert row.prompt not in {asked(s) for s in row.signals}
    for row, donor in zip(found, draw_donors(found, 0), strict=True):
        assert found[donor.opposite].id == row.mirror
    assert rows(part) == found  # the same every time


def test_a_corpus_that_has_too_little_for_a_set_is_one_line_until_it_has_enough(tmp_path: Path) -> None:
    folder = small.corpus(tmp_path / "corpus")
    (folder / "follow.json").write_text('{"phrasings": {}}')
    held = [{"type": "reaction", "kind": k, "set": "held", "text": f"I was {k}."} for k in ("pleased", "displeased")]
    facts = [{"type": "fact", "voice": v, "set": "held", "text": f"A {v}."} for v in ("statement", "post", "profile")]
    replies = {"short": "In a short way. " + "x " * 20, "long": "In a long way. " + "x " * 20}
    pairs = [
        {"type": "pair", "id": f"held-{i}", "dimension": "size", "prompt": f"form-{i}", "replies": replies}
        for i in (8, 9)
    ]
    prompt = {"type": "prompt", "id": "form-8", "text": "How so?"}
    steps = [
        ("facts.jsonl", held, "held-out facts of each voice"),
        ("facts.jsonl", facts, "any pair"),
        ("heldout/form.jsonl", pairs[1:], "pairs of size about another prompt than the target's"),
        ("heldout/form.jsonl", [prompt, pairs[0]], ""),
    ]
    lacking = "held-out pleased reactions"
    for name, more, then in steps:
        with pytest.raises(ConfigError, match=f"^{folder}: .* too little for the set prompts: it lacks {lacking}$"):
            load(folder, "corpus", limit=4, part="prompts")
        with (folder / name).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in more)
        lacking = then
    assert len(load(folder, "corpus", limit=4, part="prompts").rows) == 4
    split = json.loads((folder / "splits.json").read_text())
    (folder / "splits.json").write_text(json.dumps(split | {"combinations": []}))
    for part, why in (("users", "held-out pairs of tone"), ("combinations", "held-out combinations")):
        with pytest.raises(ConfigError, match=f"too little for the set {part}: it lacks {why}"):
            load(folder, "corpus", limit=4, part=part)


def test_the_longer_reply_is_right_for_half() -> None:
    found = rows("prompts", 200)
    assert sum(len(r.chosen) > len(r.rejected) for r in found) == sum(len(r.chosen) < len(r.rejected) for r in found)


def test_held_out_prompts_are_in_no_training_file() -> None:
    for row in rows("prompts"):
        texts = {row.prompt, *(asked(s) for s in row.signals)} - {None}
        assert texts <= set(HELD.prompts.values()) and not texts & TRAIN_PROMPTS


@pytest.mark.parametrize("part", [*testsets.SETS, "kind-edit", "signals-8"])
def test_no_target_is_a_pair_that_a_generator_may_have_learnt(part: str) -> None:
    """DPO takes any pair of the training prompts and dimensions, so new users of such pairs are not enough."""
    taught = [p for p in OURS.pairs if p.prompt not in SPLIT.dev_prompts and p.dimension not in SPLIT.dimensions]
    learnt = {reply for pair in taught for reply in pair.replies.values()}
    assert all({r.chosen, r.rejected}.isdisjoint(learnt) for r in rows(part))
    if part in ("users", "combinations"):
        assert {asked(s) for r in rows(part) for s in r.signals} - {None} <= TRAIN_PROMPTS


def test_held_out_phrasings_are_the_held_out_ones() -> None:
    trained = {t for d in OURS.dimensions.values() for p in d.poles.values() for v in p.phrasings.values() for t in v}
    for row in rows("phrasings"):
        for signal in row.signals:
            assert signal.kind in testsets.SAID
            assert not trained & set(signal.texts())


def test_held_out_combinations_and_dimensions_are_the_splits() -> None:
    def dimensions(row: Row) -> set[str]:
        said = {t: d.id for d in OURS.dimensions.values() for p in d.poles.values() for t in p.phrasings["summary"]}
        return {d for t, d in said.items() if t in row.oracle}

    assert {frozenset(dimensions(r)) for r in rows("combinations")} <= SPLIT.combinations
    assert set().union(*(dimensions(r) for r in rows("dimensions"))) == SPLIT.dimensions
    for part in ("users", "prompts", "phrasings"):
        assert not set().union(*(dimensions(r) for r in rows(part))) & SPLIT.dimensions


def test_kinds_and_numbers_are_what_they_are_called() -> None:
    assert {s.kind for r in rows("kind-rating") for s in r.signals} == {"rating"}
    for n in (1, 2, 8):
        found = rows(f"signals-{n}")
        assert {len(r.signals) for r in found} == {n}
        assert all(isinstance(s, Comparison) for r in found for s in r.signals)


@pytest.mark.parametrize("part", ["prompt", "kind-letter", "signals-0", "signals-17", ""])
def test_a_set_that_does_not_exist_is_named(part: str) -> None:
    with pytest.raises(ConfigError, match="there is no set"):
        rows(part)


def test_a_folder_without_a_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no corpus"):
        load(tmp_path, "corpus", part="prompts")


# the probe ------------------------------------------------------------------------------------------------
def test_the_probe_reads_phrasings_that_it_was_not_fitted_on_far_above_chance() -> None:
    def examples(which: corpus.Corpus) -> list[tuple[Want, str]]:
        return [
            (Want(d.id, p.id), t)
            for d in which.dimensions.values()
            for p in d.poles.values()
            for t in p.phrasings["summary"]
        ]

    made = probe.Probe.fit(examples(OURS))
    unseen = examples(HELD)
    assert sum(want in made.poles(text) for want, text in unseen) / len(unseen) > 0.5  # chance: 1/56
    seen = examples(OURS)
    assert sum(probe.fitted().poles(text) == [want] for want, text in seen) / len(seen) > 0.95


def test_verdicts_count_named_opposite_missed_and_other() -> None:
    short, funny = Want("length", "short"), Want("humour", "funny")
    text = "Prefers short answers that stop once the question is answered. Enjoys funny, playful replies."
    made = probe.fitted()
    assert probe.judge(text, [short, funny], made) == probe.Verdict(2, 0, 0, 0)
    assert probe.judge(text, [Want("length", "long")], made) == probe.Verdict(0, 1, 0, 1)
    assert probe.judge("", [short], made) == probe.Verdict(0, 0, 1, 0)
    verdicts = [probe.judge(text, [short, funny], made), probe.judge("", [short], made)]
    assert probe.f1(verdicts) == pytest.approx(2 * 2 / (2 + 3))
    assert probe.f1([]) == 0


def test_who_names_both_poles_of_a_want_is_half_right() -> None:
    """Two poles said, one of them wanted: precision ½, recall 1."""
    short, long = Want("length", "short"), Want("length", "long")
    made = probe.Probe.fit([(short, "likes short replies"), (long, "likes long replies")])
    verdict = probe.judge("Likes short replies. Likes long replies.", [short], made)
    assert verdict == probe.Verdict(1, 0, 0, 0, 1) and probe.f1([verdict]) == pytest.approx(2 / 3)


def test_behaviour_figures_are_counted_from_the_summaries() -> None:
    short = Want("length", "short")
    user, mute = User("a", (short,), (), ()), User("b", (), (), ())
    said = "Prefers short answers that stop once the question is answered."
    got = behaviour.figures([(user, said, "draft"), (user, said, "draft"), (user, "", "insufficient")])
    assert (got["named"], got["missed"], got["distinct"]) == (0.6667, 0.3333, 1)
    assert got["silent"] == 0.3333
    got = behaviour.figures([(mute, "", "insufficient"), (mute, said, "draft")])
    assert (got["named"], got["silent"], got["others_a_user"]) == (None, 0.5, 0.5)


def test_users_for_behaviour_are_silent_changed_and_mixed() -> None:
    assert all(not u.wants for u in behaviour.users("silent", 20, 0))
    assert all(u.wants for u in behaviour.users("mixed", 20, 0))
    for user in behaviour.users("changed", 20, 0):
        old = next(said for said in user.upto if said)[0]
        assert user.wants[0].dimension == old.dimension and user.wants[0].pole != old.pole
    assert all(len(u.signals) == 16 for u in behaviour.users("signals-16", 4, 0))
    assert Mix().least == 2
