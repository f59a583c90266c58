"""A summary made of a bundle's own sentences: the likeliest each time, of which no other search finds a likelier."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popi_edge as popi
from popi_edge import prompts
from popi_edge.cli import main
from popi_edge.engines.base import Score
from popi_edge.errors import ConfigError, ModelError
from popi_edge.models import bundle
from popi_edge.models.manifest import MAX_CANDIDATES, parse
from popi_edge.summarize import NEAR, SENTENCE_END, Decoding, choose, infer
from popi_training import candidates, warm
from popi_training import corpus as corpora

SIGNALS = (
    popi.Comparison(prompt="Why?", chosen="It rained.", rejected="Let us see what the sky has to say."),
    popi.Statement(text="I like short answers."),
    popi.Edit(prompt="How?", original="Walk there, and rest on the way.", edited="Walk."),
)
SILENCE = str(prompts.spec()["silence"])
GROUPS = (
    (("Be kind.", "Be brief.", "Be bold."), ("Likes long replies with many good reasons.", "Be long.")),
    (("Likes a step.",), ("Prefers words.", "Prefers lists!")),
    (("No jokes, please.",),),
)
SAID = [[pole[0] for pole in some] for some in GROUPS]
ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "training" / "recipes" / "warm-start-wide.toml"
OWN = (ROOT / "docs" / "measured" / "fifth_follow.json", ROOT / "docs" / "measured" / "fifth_follow_wide.json")
"""How popi-smol's own generator follows each sentence."""


@pytest.fixture
def me(tiny: tuple[Path, Any], tmp_path: Path) -> Iterator[popi.Popi]:
    with popi.Popi.open(home=tmp_path / "home", model=str(tiny[0]), threads="1") as me:
        yield me


def prompt_of(me: popi.Popi, signals: tuple[Any, ...] = SIGNALS) -> list[int]:
    texts = [prompts.signal_text(s, me.engine.tokenizer) for s in signals]
    return prompts.chat_ids(me.engine.tokenizer, prompts.infer_messages(texts))


def by_scoring(me: popi.Popi, prompt: list[int], mask: Any, limit: int = 48) -> str:
    """The same summary by scoring every sentence, and the end, from the description alone."""
    engine, read, said, left = me.engine, "", "", list(GROUPS)
    tokenizer = engine.tokenizer

    def worth(text: str) -> float:
        """log p of what ``text`` adds to ``read``; the end for the same text."""
        ids, before = tokenizer.encode(text), tokenizer.encode(read)
        ids = [*ids, tokenizer.eos] if text == read else ids
        whole = engine.score(prompt, [ids], constraint=mask, max_tokens=limit)[0].tokens
        return math.fsum(whole[len(before) :])

    while left:
        poles = [(pole[0], [f"{read} {t}".strip() for t in pole]) for some in left for pole in some]
        poles = [(first, [t for t in pole if len(tokenizer.encode(t)) < limit]) for first, pole in poles]
        poles.append(("", [read or SILENCE]))
        values = [[worth(t) for t in pole] for _, pole in poles]
        near = max(max(some, default=-math.inf) for some in values) - NEAR
        sums = [sum(math.exp(v) for v in some if v >= near) for some in values]
        meant = sums.index(max(sums))
        first, pole = poles[meant]
        if not first:
            return said or pole[0]
        if len(tokenizer.encode(f"{said} {first}".strip())) < limit:
            read, said = pole[values[meant].index(max(values[meant]))], f"{said} {first}".strip()
            left = [some for some in left if first not in [p[0] for p in some]]
        else:
            left = [[p for p in some if p[0] != first] for some in left]
            left = [some for some in left if some]
    return said


@pytest.fixture
def talkative(me: popi.Popi, monkeypatch: pytest.MonkeyPatch) -> popi.Popi:
    """With a model that ends sooner or later, by its prompt's first token: to one that nobody trained a single token is
    likelier than any sentence."""
    known, eos = me.engine._eval, me.engine.tokenizer.eos

    def seldom(lane: Any, ids: Any, last: int) -> Any:
        logits = known(lane, ids, last).copy()
        logits[:, eos] -= (lane.tokens or ids)[0] % 80
        return logits

    monkeypatch.setattr(me.engine, "_eval", seldom)
    return me


@pytest.mark.parametrize("limit", [48, 40])
@pytest.mark.parametrize("masked", [True, False])
def test_each_sentence_is_the_likeliest_of_what_is_left(talkative: popi.Popi, masked: bool, limit: int) -> None:
    engine, mask, rng = talkative.engine, talkative._constraint() if masked else None, random.Random(3)
    found = set()
    for _ in range(12):
        prompt = [rng.randrange(20, 250) for _ in range(12)]
        text, tokens = choose(engine, prompt, limit, mask, None, Decoding(candidates=GROUPS))
        assert text == by_scoring(talkative, prompt, mask, limit)
        assert tokens == len(engine.tokenizer.encode(text)) < limit
        found.add(text)
    assert len({len(text.split(". ")) for text in found}) > 1


def test_of_a_dimension_one_pole_is_said(talkative: popi.Popi) -> None:
    rng = random.Random(1)
    for k in range(6):
        prompt = [rng.randrange(20, 250) for _ in range(12)]
        text, _ = choose(talkative.engine, prompt, 48, None, None, Decoding(candidates=GROUPS))
        said = [t for some in SAID for t in some if t in text]
        assert text == SILENCE or sorted(text) == sorted(" ".join(said)), k
        assert all(sum(t in said for t in some) <= 1 for some in SAID)
        one, _ = choose(talkative.engine, prompt, 48, None, None, Decoding(candidates=GROUPS, sentences=1))
        assert one == SILENCE or (text.startswith(one) and one in itertools.chain.from_iterable(SAID))


def test_what_the_vocabulary_does_not_let_be_written_is_not_said(me: popi.Popi) -> None:
    mask, prompt = me._constraint(), prompt_of(me)
    odd = ((("Likes Xylophonia.", "be brief"), ("Met 42 people.",)),)
    assert choose(me.engine, prompt, 48, mask, None, Decoding(candidates=odd))[0] in ("", SILENCE)
    both = Decoding(candidates=(*odd, (("Be kind.",),)))
    assert choose(me.engine, prompt, 48, mask, None, both)[0] in ("Be kind.", SILENCE)
    free = infer(me.engine, SIGNALS, constraint=mask)
    assert choose(me.engine, prompt, 48, mask, None, Decoding()) == ("", 0) and free.text


def test_having_nothing_to_say_is_no_summary(me: popi.Popi, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Decoding(candidates=GROUPS, known=True)
    wanted = me.engine.tokenizer.encode(SILENCE)
    monkeypatch.setattr(me.engine, "likeliest", lambda prompt, some, **_: [(some.index(wanted), Score(-1.0, (-1.0,)))])
    made = infer(me.engine, SIGNALS, constraint=me._constraint(), decoding=how)
    assert (made.status, made.text) == ("insufficient", "") and "say nothing of how replies should be" in made.reason


def test_who_did_more_than_choose_between_two_replies_gets_known_sentences(talkative: popi.Popi) -> None:
    engine, mask, how, found = talkative.engine, talkative._constraint(), Decoding(candidates=GROUPS), set()
    rating = popi.Rating(prompt="Why?", response="It rained.", score=0.9)
    for signals in (SIGNALS, SIGNALS[:1] * 2, SIGNALS[2:] * 2, SIGNALS[::2], (SIGNALS[1], rating), (rating, rating)):
        known, written, made = (
            infer(engine, signals, constraint=mask, decoding=d)
            for d in (replace(how, known=True), replace(how, candidates=()), how)
        )
        alone = all(isinstance(s, popi.Comparison | popi.Edit) for s in signals)
        assert made == (written if alone else known)
        assert set(SENTENCE_END.split(known.text)) <= {"", *itertools.chain(*SAID)}
        found.add((alone, known == written))
    assert found == {(True, False), (False, False)}


TOO_MANY = [[[f"Be {i}." for i in range(MAX_CANDIDATES + 1)]]]


NO_SENTENCES = ["x" * 301, "a\nb.", " Be brief.", ""]
WRONG = [7, ["Be brief."], [["Be brief."]], [[]], [[[]]], [[["Be brief."]], [["Be brief."]]], TOO_MANY]


@pytest.mark.parametrize("wrong", [*WRONG, *([[[text]]] for text in NO_SENTENCES)])
def test_a_bundle_whose_sentences_are_none_is_refused(wrong: object) -> None:
    shipped = Path(popi.__file__).parent / "models" / "popi-smol" / "manifest.json"
    manifest = json.loads(shipped.read_text("utf-8"))
    manifest["decoding"] = {"candidates": [[["Be brief."], ["Be long."]]]}
    assert parse(json.dumps(manifest).encode(), shipped)
    manifest["decoding"] = {"candidates": wrong}
    with pytest.raises(ModelError, match=r"decoding\.candidates"):
        parse(json.dumps(manifest).encode(), shipped)


def test_a_recipe_s_sentences_are_what_it_teaches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of popi-smol's inference model: those of its manifest, none of a dimension that is held out."""
    measured = corpora.FOLDER / warm.FOLLOW
    own = [arg for file in OWN for arg in ("--generator", str(file))]
    monkeypatch.setattr(sys, "argv", ["candidates", str(RECIPE), "--measured", str(measured), *own])
    candidates.main()
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "896 phrasings, r = 0.52 between the two generators\n"
    shipped = Path(popi.__file__).parent / "models" / "popi-smol" / "manifest.json"
    assert found == json.loads(shipped.read_text("utf-8"))["decoding"]["candidates"]
    corpus, moved = corpora.load(wide=True, later=False), warm.read_follow(measured)
    base = moved | warm.read_follow(corpora.FOLDER / warm.FOLLOW_WIDE)
    theirs = {text: nats for file in OWN for text, nats in warm.read_follow(file).items()}
    every = {t: base[t] / np.std(list(base.values())) + theirs[t] / np.std(list(theirs.values())) for t in base}
    held = json.loads((corpora.FOLDER / "splits.json").read_text())["dimensions"]
    said = {t for poles in found for pole in poles for t in pole}
    assert not said & {t for d in held for p in corpus.dimensions[d].poles.values() for t in p.phrasings["summary"]}
    assert len(found) == len(corpus.dimensions) - len(held)
    every_pole = [p.phrasings["summary"] for d in corpus.dimensions.values() for p in d.poles.values()]
    of = {text: texts for texts in every_pole for text in texts}
    for first, *taught in (pole for poles in found for pole in poles):
        texts = of[first]
        assert every[first] == pytest.approx(max(every[t] for t in texts))
        taught += [first] * (len(taught) < 3)
        assert len(taught) == 3 and set(taught) <= set(texts)
        if set(texts) <= set(moved):
            assert min(moved[t] for t in taught) >= max(moved[t] for t in texts if t not in taught)
        elif not set(texts) & set(moved):
            assert sorted(taught) == sorted(texts)[:3]


@pytest.mark.parametrize(("own", "said"), [
    ({"A.": 1.0}, "one generator was measured on 'B.' and the other was not"),
    ({"A.": 1.0, "B.": 2.0, "C.": 0.0}, "one generator was measured on 'C.' and the other was not"),
    ({"A.": 1.0, "B.": 1.0}, "a generator that all phrasings move alike cannot say which is followed best"),
])  # fmt: skip
def test_two_generators_are_told_apart_on_the_same_phrasings_alone(own: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        candidates.together({"A.": 3.0, "B.": 1.0}, own)
    assert candidates.together({"A.": 3.0, "B.": 1.0}, {"A.": 0.0, "B.": 4.0}) == {"A.": 3.0, "B.": 3.0}


def test_a_generator_that_was_not_measured_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.json").write_text('{"phrasings": {}}')
    monkeypatch.setattr(sys, "argv", ["candidates", str(RECIPE), "--generator", str(tmp_path / "own.json")])
    with pytest.raises(SystemExit, match=r"^candidates: one generator was measured on .* and the other was not$"):
        candidates.main()


def test_a_recipe_without_phrasings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["candidates", str(RECIPE.with_name("popi-micro.toml"))])
    with pytest.raises(SystemExit, match=r"^candidates: .*popi-micro.toml does not train on a corpus with phrasings$"):
        candidates.main()


def test_a_person_asks_for_known_sentences(
    me: popi.Popi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    me.record(*SIGNALS)
    monkeypatch.setenv("POPI_MODEL", str(me.settings.model))

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["popi", "summary", "refresh", "--home", str(tmp_path / "home"), *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    free = json.loads(run("--json")[1])["text"]
    code, _, err = run("--known")
    assert code == 1 and "known: tiny has no sentences of its own to make a summary of" in err
    monkeypatch.setattr(bundle, "ZERO_SHOT", {"candidates": GROUPS})
    asked = json.loads(run("--known", "--json")[1])["text"]
    assert asked and asked != free and set(SENTENCE_END.split(asked)) <= set(itertools.chain(*SAID))
    written = json.loads(run("--no-known", "--json")[1])["text"]
    assert written not in ("", asked)
    assert json.loads(run("--json")[1])["text"] == asked
    for setting, said in (("false", written), ("true", asked)):
        (tmp_path / "home" / "config.toml").write_text(f"known = {setting}\n")
        assert json.loads(run("--json")[1])["text"] == said
    (tmp_path / "home" / "config.toml").write_text('known = "maybe"\n')
    code, _, err = run()
    assert code == 1 and "known is 'maybe'; it must be true or false" in err
