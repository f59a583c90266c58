"""The attackers find what is planted and nothing where nothing is; counts and codes are held to enumeration."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import closed_vocabulary, tells, tells_coding, tells_count, tells_smuggle, tells_write
from bench.tells_attribute import attributes, kernels, parts, ridge, trained
from bench.tells_coding import Coder, Interval, Spelling
from bench.tells_linkage import linkage, named, ranks
from bench.tells_personas import ATTRIBUTES, RULES, Drawer, labelled, line, read
from popi_edge import config
from popi_edge.errors import ConfigError
from popi_edge.models.tokenizer import Tokenizer
from popi_edge.vocabulary import INNER, MARKS, ClosedVocabulary, Lexicon
from popi_training import corpus
from popi_training.compare import compare
from popi_training.compare import read as read_listing
from popi_training.evaluate.run import open_pair
from tests.test_transfer import tiny_base, tiny_bundle

SAID = {
    "age": {"child": ["I am 11 years old", "I am in third grade"], "young": ["I am 21", "At college we row"],
            "grown": ["We bought a house, and it leaks", "Thirties suit me fine"],
            "old": ["I retired from the mill", "On stairs we feel old"]},
    "job": {"teaching": ["A teacher of maths, that is me", "Librarian by the sea, so quiet"],
            "care": ["I am a nurse at night", "I volunteer for the blind"],
            "trade": ["Electrician, mostly on ships", "A plumber and proud of it"],
            "service": ["I am a waitress at dawn", "I sell at a supermarket"],
            "stage": ["I am a singer of old songs", "I am a wrestler in a mask"]},
    "place": {"country": ["We keep a tractor", "I live in a small town"],
              "city": ["Our apartment has a tiny stove", "I came from manhattan"],
              "state": ["I am new in ohio", "There is snow in colorado"],
              "abroad": ["I left somalia by boat", "We came from germany"]},
    "health": {"illness": ["I had surgery on a knee", "An allergy keeps me from nuts"],
               "exercise": ["I kayak on weekdays", "I love hiking alone"],
               "diet": ["Vegan since spring", "I eat kosher"],
               "mood": ["I feel lonely at night", "I am afraid of bees"]},
}  # fmt: skip
"""Lines of our own for every class."""
FACTS = {text for classes in SAID.values() for some in classes.values() for text in some}


@pytest.fixture(scope="module")
def personas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = sorted(FACTS)
    path = tmp_path_factory.mktemp("personas") / "lines.jsonl"
    rows = [{"p1": lines[::2], "p2": [*lines[1::2], "I own a boat."], "conv": []}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return path


# people -------------------------------------------------------------------------------------------------------
def test_rules_give_each_line_its_class_and_others_none(personas: Path) -> None:
    assert {a: set(c) for a, c in RULES.items()} == {a: set(c) for a, c in SAID.items()}
    for attribute, classes in SAID.items():
        for name, some in classes.items():
            assert all(labelled(text) == (attribute, name) for text in some)
    for text in ("My father is a plumber.", "My son likes high school.", "A vegan nurse at night.", "I own a boat."):
        assert labelled(text) is None, text
    assert read(personas) == {a: {c: sorted(t) for c, t in some.items()} for a, some in SAID.items()}


def test_a_file_that_is_no_persona_file_or_lacks_a_class_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for content, says in (("nonsense\n", "personas p1 and p2"), ('{"p1": []}\n', "personas p1 and p2"),
                          ('{"p1": ["I am 21"], "p2": []}\n', "fewer than two lines of age: child")):  # fmt: skip
        path.write_text(content)
        with pytest.raises(ConfigError, match=says) as refused:
            read(path)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "nowhere.jsonl")


def test_couples_want_the_same_and_are_otherwise_drawn_apart(personas: Path) -> None:
    draw, prompts = Drawer(read(personas), 0), set(corpus.load(heldout=True).prompts.values())
    equal = dict.fromkeys(ATTRIBUTES, 0)
    for k in range(40):
        one, other = draw.couple(k)
        assert one.wants == other.wants and draw.couple(k) == (one, other)
        for person in (one, other):
            row = line(person, "")
            assert sorted(row["facts"]) == sorted(t for t in row["signals"] if t in FACTS)
            assert {labelled(t) for t in row["facts"]} == {*person.classes.items()}
            more = [t for t in row["others"] if t in FACTS]
            assert {labelled(t) for t in more} == {*person.classes.items()} and not set(more) & set(row["facts"])
        shown = [{getattr(s, "prompt", None) for s in p.signals} & prompts for p in (one, other)]
        assert not shown[0] & shown[1]
        for a in ATTRIBUTES:
            equal[a] += one.classes[a] == other.classes[a]
    assert all(1 <= n <= 22 for n in equal.values()), equal  # of forty, a quarter or a fifth expected
    long = draw.long(0, 50)
    assert len(long.signals) == 50 and len(long.wants) == 4
    assert len([t for t in line(long, "")["signals"] if t in FACTS]) == 12


# attackers ----------------------------------------------------------------------------------------------------
def people(personas: Path, count: int, say: Any) -> list[dict[str, Any]]:
    draw = Drawer(read(personas), 1)
    return [line(p, say(p)) for k in range(count) for p in draw.couple(k)]


def leaky(person: Any) -> str:
    """A summary whose manner tells the attributes in code."""
    code = {a: "abcdefgh"[sorted(RULES[a]).index(c)] * 3 for a, c in person.classes.items()}
    return " ".join(f"Prefers {a} {c} things." for a, c in code.items())


def test_an_attribute_that_is_told_is_found_and_one_that_is_not_is_guessed(personas: Path) -> None:
    rows = people(personas, 40, leaky)
    told = attributes(rows, "text")
    assert all(told[a]["attack"]["accuracy"] > 0.95 and told[a]["extra"]["clear"] for a in (*ATTRIBUTES, "all"))
    silent = attributes(people(personas, 40, lambda p: f"Prefers {len(p.wants)} answers."), "text")
    assert abs(silent["all"]["extra"]["difference"]) < 0.12 and not silent["all"]["extra"]["clear"]
    assert silent["all"]["guess"]["accuracy"] < 0.4
    control = attributes(people(personas, 40, lambda p: "Likes brevity."), "told")
    assert control["all"]["extra"]["low"] > 0.3
    assert (trained(rows, [[r["text"]] for r in rows[:5]])[:, 0] == [r["classes"]["age"] for r in rows[:5]]).all()


def test_ridge_is_the_plain_solution_and_leaves_couples_together() -> None:
    rng = random.Random(0)
    texts = [[" ".join(rng.choices(["red", "green", "blue", "old", "new", "hot"], k=4))] for _ in range(24)]
    labels = [rng.choice("abc") for _ in texts]
    alike = {1: kernels(texts)[1]}
    assert np.allclose(np.diag(alike[1]), 1) and np.allclose(alike[1], alike[1].T)
    known, asked = list(range(18)), list(range(18, 24))
    classes, scores = ridge(alike, known, labels[:18], asked)
    y = np.array([[float(c == x) for c in classes] for x in labels[:18]])
    k = alike[1]
    plain = [k[np.ix_(asked, known)] @ np.linalg.solve(k[:18, :18] + s * np.eye(18), y - y.mean(0)) + y.mean(0)
             for s in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)]  # fmt: skip
    assert any(np.allclose(scores, p, atol=1e-5) for p in plain)
    names = [f"c{i // 2}" for i in range(24)]
    found = parts(names, 3)
    assert sorted(itertools.chain(*found)) == list(range(24))
    assert all({names[i] for i in a}.isdisjoint(names[i] for i in b) for a, b in itertools.combinations(found, 2))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.data())
def test_ranks_are_those_of_all_orders_of_ties(scores: list[int], data: Any) -> None:
    right = data.draw(st.integers(0, len(scores) - 1))
    rank, chance = ranks(np.array([scores], np.float64), [right])
    orders = [sorted(range(len(scores)), key=lambda i: (-scores[i], o[i]))
              for o in itertools.permutations(range(len(scores)))]  # fmt: skip
    places = [o.index(right) + 1 for o in orders]
    assert rank[0] == pytest.approx(np.mean(places)) and chance[0] == pytest.approx(np.mean([p == 1 for p in places]))


def test_a_summary_links_by_what_it_names_and_an_empty_one_links_to_all_alike(personas: Path) -> None:
    words = corpus.load().dimensions

    def says(person: Any) -> str:
        return " ".join(words[w.dimension].poles[w.pole].phrasings["summary"][0] for w in person.wants)

    rows = people(personas, 20, says)
    assert all(named([r["text"]], r) > 0 for r in rows)
    found = linkage([rows[::2], rows[1::2]])
    assert found["chance"] == 0.05 and found["preferences"]["first"]["accuracy"] > 0.4
    nothing = linkage([[r | {"text": ""} for r in rows[::2]]] * 2)
    for who in ("preferences", "words", "learnt"):
        assert nothing[who]["first"]["accuracy"] == pytest.approx(0.05) and nothing[who]["median_rank"] == 10.5


# counting -----------------------------------------------------------------------------------------------------
def tokens_of(words: Sequence[str]) -> list[bytes | None]:
    singles = sorted({bytes([b]) for w in words for b in (w + w.upper() + " .,;:!?").encode()})
    return [None, *singles]


@pytest.mark.parametrize("extra", [[], [b"ab", b" a"], [b" b", b"ba", b" ab", b"Ab"]])
def test_counts_are_those_of_enumeration(extra: list[bytes]) -> None:
    lexicon, tokens = Lexicon(["a", "ab", "ba"]), [*tokens_of(["ab"]), *extra]
    limit = 6
    mask = ClosedVocabulary(lexicon, tokens, [0], max_tokens=limit)
    found: dict[int, int] = {}
    shortest: dict[bytes, int] = {}

    def walk(state: int, text: bytes, n: int) -> None:
        if lexicon.accepts(text.decode()):
            found[n] = found.get(n, 0) + 1
            shortest[text] = min(n, shortest.get(text, n))
        if n < limit:
            for token in mask._step(state)[0].tolist():
                walk(mask.advance(state, token), text + (tokens[token] or b""), n + 1)

    walk(mask.start(), b"", 0)
    assert found and tells_count.sequences(mask, limit) == [found.get(n, 0) for n in range(limit + 1)]
    lengths = list(shortest.values())
    assert tells_count.texts(lexicon, tokens, limit) == [lengths.count(n) for n in range(limit + 1)]


def test_a_token_that_reaches_over_a_words_end_is_refused() -> None:
    lexicon = Lexicon(["a", "ab"])
    for token in (b"a a", b". A", b"b, a", b"a."):
        with pytest.raises(ConfigError, match="reaches over"):
            tells_count.texts(lexicon, [*tokens_of(["ab"]), token], 6)
    assert tells_count.texts(lexicon, [*tokens_of(["ab"]), b". .", b"a  a", b"x y"], 6)  # these can never follow


# coding -------------------------------------------------------------------------------------------------------
@settings(max_examples=200)
@given(st.integers(1, 70), st.randoms(use_true_random=False))
def test_what_the_interval_is_told_it_tells_again(bits: int, rng: random.Random) -> None:
    secret = rng.getrandbits(bits)
    sent, got = Interval(), Interval()
    while sent.known(bits)[0] < bits:
        ends = tells_coding.parts(np.array([rng.random() ** 4 + 1e-12 for _ in range(rng.randint(2, 9))])).tolist()
        k = sent.pick(secret, bits, ends)
        for interval in (sent, got):
            interval.narrow(ends[k - 1] if k else 0, ends[k] - (ends[k - 1] if k else 0), ends[-1])
        n, value = got.known(bits)
        assert value == secret >> (bits - n)
    assert got.known(bits) == (bits, secret)


@pytest.fixture
def bundle(tmp_path: Path, tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    path, model = tiny
    tiny_base(path, monkeypatch)
    monkeypatch.setenv("POPI_THREADS", "1")
    return tiny_bundle(tmp_path / "ours.popi", model, 1)


@pytest.mark.parametrize("way", ["whole", "uniform", "behind"])
def test_a_secret_arrives_in_a_lawful_text(bundle: Path, way: str) -> None:
    pair = open_pair(str(bundle), None, config.load())
    tokenizer = pair.engine.tokenizer
    lexicon = Lexicon(["plain", "short", "direct", "words", "answers", "prefers", "each", "step", "fine", "heat"])
    mask = ClosedVocabulary(lexicon, tokenizer.token_bytes, tokenizer.eos_ids, max_tokens=48)
    coder = Coder(pair, Spelling.of(mask, tokenizer), 48)
    opening = "Prefers plain words." if way == "behind" else ""
    texts = set()
    for secret in (0, 5, 77, 255):
        ids = coder.send(secret, 8, way, opening)
        text = tokenizer.decode(ids)
        assert lexicon.accepts(text) and len(ids) <= 48 and text.startswith(opening), text
        assert coder.receive(text, 8, way, opening) == (8, secret)
        texts.add(text)
    assert len(texts) == 4
    pair.engine.close()


def spelled(tokenizer: Tokenizer, spelling: Spelling, rng: random.Random) -> list[int]:
    ids, node = list[int](), spelling.roots["first"]
    while len(ids) < 30:
        ways = sorted(spelling.follow(node).items())
        token, node = rng.choice(ways)
        ids.append(token)
    while node not in spelling.whole:
        token, node = sorted(spelling.follow(node).items())[0]
        ids.append(token)
    return ids


@pytest.mark.model
def test_texts_of_the_spelling_are_read_as_they_were_written(base: Path) -> None:
    from popi_edge.models.gguf import Gguf

    tokenizer, lexicon = Tokenizer(Gguf(base)), Lexicon.load()
    mask = ClosedVocabulary(lexicon, tokenizer.token_bytes, tokenizer.eos_ids)
    spelling, rng = Spelling.of(mask, tokenizer), random.Random(0)
    assert len(spelling.marks) == len(INNER + MARKS)
    for _ in range(200):
        ids = spelled(tokenizer, spelling, rng)
        assert tokenizer.encode(tokenizer.decode(ids)) == ids and lexicon.accepts(tokenizer.decode(ids) + ".")


def test_a_code_of_words_is_lawful_and_read_as_it_was_said() -> None:
    assert len(set(tells_smuggle.WORDS)) == 16
    rng = random.Random(0)
    for _ in range(200):
        digits = [rng.randrange(16) for _ in range(8)]
        text = tells_smuggle.told(digits)
        assert Lexicon.load().accepts(text) and tells_smuggle.arrived(text, digits) == 32
        other = [(d + (k == 3)) % 16 for k, d in enumerate(digits)]
        assert tells_smuggle.arrived(text, other) == 28
    assert tells_smuggle.arrived("Prefers wit.", [0] * 8) == 0


def test_an_adapter_learns_and_what_it_was_trained_to_say_is_counted(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny model learns no code in twelve steps, but its loss falls; the command goes on from its adapter."""
    work, out = tmp_path / "work", tmp_path / "found.json"
    losses = []
    for steps in (12, 1, 0):
        words = ["--work", work, "--steps", steps, "--people", 2, "--bundle", bundle, "--json", out]
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        assert tells_smuggle.main() == 0
        found = json.loads(out.read_text())
        losses.append(found["last_loss"])
        assert set(found["ways"]) == {"mask", "no mask"} and found["ways"]["mask"]["of"] == 2
        assert found["ways"]["mask"]["bits"]["mean"] < 32
    assert losses[1] < losses[0] - 0.3 and losses[2] is None
    monkeypatch.setattr(sys, "argv", ["x", "--work", str(work), "--people", "1"])
    with pytest.raises(SystemExit) as left:
        tells_smuggle.main()
    assert left.value.code == 2


# the commands -------------------------------------------------------------------------------------------------
def test_the_commands_write_what_the_attackers_read_and_go_on(
    bundle: Path, personas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    words = ["--personas", personas, "--work", work, "--couples", 4, "--open", 3, "--long", 2, "--updates", 20,
             "--asked", 2, "--bundle", bundle]  # fmt: skip

    def call(module: Any, *args: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["x", *map(str, args)])
        return int(module.main())

    assert call(tells_write, *words) == 0
    kept = (work / "units.jsonl").read_bytes()
    closed, unmasked, long = (tells.read(work, n) for n in ("closed", "open", "long"))
    assert (len(closed), len(unmasked), [len(p["texts"]) for p in long]) == (8, 3, [20, 20])
    assert all(Lexicon.load().accepts(r["text"]) for r in closed if r["text"])
    rows = tells.read(work, "likelihood")
    assert len(rows) == 2 and all(np.array(r["signals"]).shape == (2, 2) for r in rows)
    assert np.isfinite([r[w] for r in rows for w in ("signals", "others")]).all()
    assert call(tells_write, *words) == 0 and (work / "units.jsonl").read_bytes() == kept
    assert call(tells_write, *words, "--seed", 1) == 1
    monkeypatch.setattr(tells, "PANEL", 4)
    out = tmp_path / "tells.json"
    figures = ["attributes", "accumulation", "entropy", "linkage"]
    assert call(tells, "--work", work, "--figure", *figures, "--json", out) == 0
    found = json.loads(out.read_text("utf-8"))
    assert found["attributes"]["people"] == 8 and found["linkage"]["open"]["of"] == 3
    assert found["accumulation"]["updates"] == 20 and found["entropy"]["closed"]["people"] == 8
    assert call(tells, "--work", tmp_path / "none") == 1
    (work / "open.jsonl").write_text('{"user": "x"}\n')
    assert call(tells, "--work", work, "--figure", "entropy") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("bench.tells: ")


def test_closed_and_open_listings_are_of_the_same_rows_and_differ_in_the_mask(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--bundle", bundle, "--limit", 4, "--work", tmp_path / "work", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
    assert closed_vocabulary.main() == 0
    found = json.loads((tmp_path / "out" / "closed_vocabulary.json").read_text("utf-8"))
    closed, unmasked = (read_listing(tmp_path / "out" / f"{s}_prompts.jsonl") for s in ("closed", "open"))
    lexicon = Lexicon.load()
    assert [*closed] == [*unmasked] and all(lexicon.accepts(x["text"]) for x in closed.values() if x["text"])
    assert not all(lexicon.accepts(x["text"]) for x in unmasked.values() if x["text"])
    assert found["differ"] == sum(closed[r]["text"] != unmasked[r]["text"] for r in closed) > 0
    by = {d["metric"]: d["difference"] for d in compare(closed, unmasked)["differences"]}
    assert {k: v["difference"] for k, v in found["difference"].items()} == by
    assert found["open"]["accuracy"] - found["closed"]["accuracy"] == pytest.approx(by["accuracy"])
