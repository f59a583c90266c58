"""The people that training is made of: drawn by name alone, true to what they want, and kept from what is held out."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from popi_edge import prompts
from popi_edge.errors import ConfigError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_edge.signals import Comparison, Conversation, Edit, Rating, Signal
from popi_edge.vocabulary import Lexicon
from popi_training import corpus, recipe, splits, warm
from popi_training.pack import Sample
from popi_training.users import Material, Mix, User, Want, draw, mirror, say

WARM = Path(recipe.__file__).parent.parent / "recipes" / "warm-start.toml"
MATERIAL = Material(corpus.load())
PLAIN = Mix(noise=0.0, change=0.0, cancel=0.0, distractors=0.0, silent=0.0)
STATED = replace(PLAIN, kinds={"statement": 1.0})
"""Users who say outright what they want, so that every signal's pole can be read from its text."""
JUDGED = replace(PLAIN, kinds={"comparison": 1.0}, wants=(1.0,), signals=(0.0, 0.0, 1.0))
POLE_OF = {
    text: Want(d.id, p.id)
    for d in MATERIAL.corpus.dimensions.values()
    for p in d.poles.values()
    for text in p.phrasings["statement"]
}
REPLY_OF = {text: Want(p.dimension, pole) for p in MATERIAL.corpus.pairs for pole, text in p.replies.items()}


@pytest.fixture(scope="module")
def data() -> warm.Set:
    return warm.load(recipe.read(WARM), WARM)


def stated(user: User) -> list[Want]:
    """What the signals of a stated user say, in order."""
    return [POLE_OF[s.text] for s in user.signals]  # type: ignore[union-attr]


def many(mix: Mix, count: int = 200, **options: Any) -> list[User]:
    return [draw(f"u{i}", MATERIAL, mix, **options) for i in range(count)]


def texts(signal: Signal) -> list[str]:
    """Every text of a signal."""
    if isinstance(signal, Conversation):
        return [m.content for m in signal.messages]
    names = ("prompt", "chosen", "rejected", "response", "original", "edited", "text")
    return [t for n in names if isinstance(t := getattr(signal, n, None), str)]


def test_a_user_follows_from_the_name_alone() -> None:
    first = many(Mix(), 20)
    random.seed(5)
    again = [draw(f"u{i}", MATERIAL, Mix()) for i in reversed(range(20))][::-1]
    assert first == again
    assert len({repr((u.wants, [texts(s) for s in u.signals])) for u in first}) == 20


def test_signals_show_what_the_user_wants_and_nothing_else() -> None:
    for user in many(STATED):
        assert set(stated(user)) == set(user.wants)
        counts = Counter(stated(user))
        assert [counts[w] for w in user.wants] == sorted(counts.values(), reverse=True)
        assert 2 <= len(user.signals) <= STATED.most and len(user.upto) == len(user.signals)
        assert user.upto[-1] == user.wants and user.upto[0] == (stated(user)[0],)
        assert len({w.dimension for w in user.wants}) == len(user.wants)


def test_judgements_go_to_the_reply_of_the_wanted_pole() -> None:
    seen: Counter[str] = Counter()
    for user in many(replace(PLAIN, kinds={"comparison": 1.0, "rating": 1.0, "edit": 1.0})):
        for signal in user.signals:
            seen[type(signal).__name__] += 1
            match signal:
                case Comparison():
                    own, other = REPLY_OF[signal.chosen], REPLY_OF[signal.rejected]
                    assert own in user.wants and other == MATERIAL.opposite(own)
                case Edit():
                    assert REPLY_OF[signal.edited] in user.wants
                    assert MATERIAL.opposite(REPLY_OF[signal.original]) in user.wants
                case Rating():
                    assert (REPLY_OF[signal.response] in user.wants) == (signal.score > 0.5)
    assert min(seen[k] for k in ("Comparison", "Edit", "Rating")) > 50


def test_noise_is_a_judgement_the_wrong_way_round_as_often_as_it_says() -> None:
    def wrong(mix: Mix) -> float:
        flips = [REPLY_OF[s.chosen] not in u.wants for u in many(mix, 400) for s in u.signals]  # type: ignore[union-attr]
        return sum(flips) / len(flips)

    assert wrong(JUDGED) == 0.0
    assert 0.24 < wrong(replace(JUDGED, noise=0.3)) < 0.36
    assert wrong(replace(JUDGED, noise=1.0)) == 1.0
    unjudged = {"statement": 1.0, "comparison": 0.0, "rating": 0.0}
    assert wrong(replace(JUDGED, noise=1.0, kinds=unjudged)) == 1.0


def test_after_a_change_of_mind_the_newer_wins() -> None:
    for user in many(replace(STATED, change=1.0, wants=(1.0, 1.0))):
        told = stated(user)
        new = MATERIAL.opposite(told[0])
        assert user.upto[0] == (told[0],)  # the old pole, as long as nothing else was said
        assert new in told[1:] and new in user.wants and told[0] not in user.wants
        assert told.count(new) >= 2 and told[0] not in told[1:]


def test_of_a_pole_as_often_for_as_against_nothing_is_said() -> None:
    for user in many(replace(STATED, cancel=1.0, wants=(0.0, 1.0, 1.0), most=20)):
        wanted = {w.dimension for w in user.wants}
        cancelled = [w for w in stated(user) if w.dimension not in wanted]
        assert cancelled == [cancelled[0], MATERIAL.opposite(cancelled[0])]
        assert all(w.dimension != cancelled[0].dimension for upto in user.upto for w in upto)


def test_of_a_silent_user_nothing_can_be_said(tokenizer: Tokenizer) -> None:
    facts = {text for voice in MATERIAL.facts.values() for text in voice}
    for user in many(replace(PLAIN, silent=1.0), 50):
        assert user.wants == () and all(upto == () for upto in user.upto)
        assert user.signals and all(s.text in facts for s in user.signals)  # type: ignore[union-attr]
        assert say(user.wants, MATERIAL, random.Random(0), tokenizer) == prompts.spec()["silence"]


def test_facts_change_nothing_about_what_is_wanted() -> None:
    facts = {text for voice in MATERIAL.facts.values() for text in voice}
    seen = 0
    for user in many(replace(STATED, distractors=1.0)):
        told = [s.text for s in user.signals]  # type: ignore[union-attr]
        seen += sum(t in facts for t in told)
        assert {POLE_OF[t] for t in told if t not in facts} == set(user.wants)
    assert seen > 100


def test_no_signal_is_about_a_prompt_to_be_avoided() -> None:
    avoid = sorted(MATERIAL.corpus.prompts)[::4]
    barred = {MATERIAL.corpus.prompts[i] for i in avoid}
    for user in many(PLAIN, 100, avoid=avoid):
        assert not barred & {t for s in user.signals for t in texts(s)}


class Unread:
    """A reader that notes the summaries and leaves out the slow part: the prompts' tokens and what is allowed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.said: set[str] = set()

    def prompt(self, signals: tuple[Signal, ...]) -> tuple[int, ...]:
        return (1,)

    say = warm.Reader.say
    limits = prompts.spec()["limits"]

    def completion(self, text: str) -> None:
        return None

    def sample(self, prompt: tuple[int, ...], text: str, weight: float = 1.0) -> Sample:
        self.said.add(text)
        return Sample(prompt, tuple(self.tokenizer.encode(text)), weight=weight)


def test_500_training_users_have_nothing_that_is_held_out(data: warm.Set, tokenizer: Tokenizer) -> None:
    made, split = recipe.read(WARM), splits.read()
    barred = {t for _, t in warm.all_texts(data.heldout)}
    barred |= {data.corpus.prompts[i] for i in split.dev_prompts if i in data.corpus.prompts}
    barred |= {
        t for d in split.dimensions for p in data.corpus.dimensions[d].poles.values() for v in p.phrasings.values()
        for t in v
    }  # fmt: skip
    together: Counter[int] = Counter()
    reader, steps = Unread(tokenizer), -(-500 // made.train.batch)
    for step in range(made.train.easy - steps // 4, made.train.easy + steps):
        for user, _ in warm.batch(made, data, reader, step):  # type: ignore[arg-type]
            dimensions = sorted({w.dimension for upto in user.upto for w in upto})
            assert split.allows(dimensions) and not split.dimensions & set(dimensions)
            assert not barred & {t for s in user.signals for t in texts(s)}
            together[len(dimensions)] += 1
    assert sum(together.values()) >= 500 and all(together[n] for n in range(4))
    assert reader.said and not [said for said in reader.said if any(t in said for t in barred)]
    assert len(split.dimensions) == 4 and len(split.combinations) == 40


def test_development_pairs_are_of_prompts_that_training_never_sees(data: warm.Set) -> None:
    def prompts_of(material: Material) -> set[str]:
        return {p.prompt for pairs in material.pairs.values() for p in pairs}

    assert prompts_of(data.dev) and not prompts_of(data.train) & prompts_of(data.dev)
    assert set(data.dev.dimensions) <= set(data.train.dimensions)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Tokenizer:
    return Tokenizer(Gguf(base))


def test_what_is_said_is_short_in_the_lexicon_and_of_the_wanted_poles(data: warm.Set, tokenizer: Tokenizer) -> None:
    lexicon, rng, whole = Lexicon.load(), random.Random(1), 0
    dimensions = data.corpus.dimensions
    users = many(replace(PLAIN, wants=(1.0, 1.0, 1.0, 1.0)))
    for user in users:
        text = say(user.wants, MATERIAL, rng, tokenizer)
        assert lexicon.accepts(text) and len(tokenizer.encode(text)) <= 48
        rest = text
        for want in user.wants:  # in their order; the last may be left out where they do not fit
            known = dimensions[want.dimension].poles[want.pole].phrasings["summary"]
            options = [t for t in known if rest.startswith(t)]
            if not options:
                break
            rest = rest.removeprefix(max(options, key=len)).lstrip()
        assert rest == ""
        whole += text.count(".") >= len(user.wants)
    assert whole > 0.9 * len(users)


def test_the_mirror_wants_the_opposite_in_everything() -> None:
    for user in many(PLAIN, 20):
        other = mirror(user.wants, MATERIAL)
        assert [w.dimension for w in other] == [w.dimension for w in user.wants]
        assert all(a != b for a, b in zip(user.wants, other, strict=True))
        assert mirror(other, MATERIAL) == user.wants


def test_wants_that_may_never_stand_together_are_refused_and_not_looked_for_for_ever() -> None:
    with pytest.raises(ConfigError, match=r"users\.wants: no 2 of the dimensions"):
        draw("u", MATERIAL, replace(PLAIN, wants=(0.0, 1.0)), allows=lambda dimensions: len(dimensions) < 2)


LONG = (
    "Wants a sentence or so and nothing more. Would rather hear what something does than how it works inside. This "
    "person values a considerate tone in which mistakes appear as something to build on. Prefers replies without emoji."
)
"""Within 48 tokens, but at " em" the closed vocabulary no longer sees room for a word's end."""
SHORT = "Prefers replies without emoji."


def test_what_is_learnt_could_be_written_to_its_end(tokenizer: Tokenizer) -> None:
    reader, wants = warm.Reader(tokenizer, 8192), (Want("any", "one"),)
    poles = {p: corpus.Pole(p, {"summary": (LONG, SHORT)}) for p in ("one", "other")}
    material = Material(corpus.Corpus({"any": corpus.Dimension("any", "form", "", poles)}))
    assert len(tokenizer.encode(LONG)) <= 48
    with pytest.raises(ConfigError, match="cannot be written"):
        reader.completion(LONG)
    plain = {say(wants, material, random.Random(i), tokenizer) for i in range(8)}
    assert plain == {LONG, SHORT}
    assert {reader.say(wants, material, random.Random(i)) for i in range(8)} == {SHORT}
    ids, allowed = reader.completion(SHORT)
    assert all(i in a for i, a in zip(ids, allowed, strict=True)) and ids[-1] == tokenizer.eos


def test_a_phrasing_whose_worth_is_not_known_is_not_taught_for_its_place_in_the_alphabet(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(corpus.FOLDER, tmp_path / "corpus"))
    wide = (WARM.parent / "warm-start-wider.toml").read_text("utf-8")
    own = recipe.parse(wide.replace("wide = true", f"wide = true\ncorpus = {json.dumps(str(folder))}"), "wide")
    data = warm.load(own, tmp_path / "wide.toml")
    slang = data.corpus.dimensions["era"].poles["modern_slang"].phrasings["summary"]
    moved = warm.read_follow(folder / warm.FOLLOW_WIDE)
    assert {t for t in slang if data.weights[t]} == set(sorted(slang, key=lambda t: -moved[t])[:3])
    table = json.loads((folder / warm.FOLLOW_WIDE).read_text("utf-8"))
    del table["phrasings"][slang[0]]
    (folder / warm.FOLLOW_WIDE).write_text(json.dumps(table), "utf-8")
    with pytest.raises(ConfigError, match="was not measured, nor 0 more"):
        warm.load(own, tmp_path / "wide.toml")
