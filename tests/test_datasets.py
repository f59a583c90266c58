"""The paper's four datasets from files of their shape: who is made, what is left out, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import random
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from popi_edge.errors import ConfigError, PopiError
from popi_edge.signals import Comparison
from popi_training import records
from popi_training.datasets import LEVELS, PUBLIC, load, rows
from popi_training.evaluate.conditions import draw_donors
from popi_training.evaluate.data import HISTORY, same_text
from popi_training.people import Person

Row = dict[str, Any]


def elix(n: int, judge: str, other: str = "", flip: bool = False) -> Row:
    """A judge who likes the reply for their own level; the other reply is for the opposite end."""
    other = other or (LEVELS[-1] if judge != LEVELS[-1] else LEVELS[0])
    sides = [("x", judge), ("y", other)] if n % 2 == flip else [("x", other), ("y", judge)]
    row: Row = {"prompt": f"What is thing {n}?", "scorer_level": judge, "label": int(sides[0][1] != judge)}
    for side, level in sides:
        row |= {f"response_{side}": f"Thing {n} for a {level}.", f"level_{side}": level}
    return row


def review(n: int, judge: str) -> Row:
    word, other = judge.split("+")[0], {"positive": "negative", "negative": "positive", "concise": "verbose"}
    replies = {"response_x": f"Film {n} {word}", "response_y": f"Film {n} {other.get(word, 'concise')}"}
    return {"prompt": f"Review film {n}.", "scorer_level": judge, "label": 0.0, **replies}


def roleplay(n: int, persona: str) -> Row:
    about = {"persona_uuid": persona, "persona_description": f"Somebody called {persona}."}
    texts = {"x": f"Advise me on {n}.", "yw": f"{persona} likes {n}.", "yl": f"{persona} dislikes {n}."}
    return texts | {"level": persona, "score_persona": about, "another": 1}


def pair(n: int, way: int = 1) -> Row:
    return {"prompt": f"Post {n}", **dict(zip(("chosen", "rejected"), (f"Yes {n}", f"No {n}")[::way], strict=True))}


def alignx(n: int, way: int = 1) -> Row:
    history = [pair(1000 + 4 * n + k, way) for k in range(4)]
    return {**pair(n, way), "Preference Direction": [0.5] * 3, "Demographic Information": "Old.", HISTORY: history}


def write(path: Path, table: list[Any]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, list(table[0]))
            out.writeheader()
            out.writerows(table)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table), "utf-8")
    else:
        path.write_text(json.dumps(table), "utf-8")
    return str(path)


def prompts(person: Person) -> tuple[set[str], set[str]]:
    signals = {same_text(s.prompt) for s in person.signals if isinstance(s, Comparison)}
    return signals, {same_text(t.prompt) for t in person.targets}


def said(person: Person) -> list[tuple[str, str, str]]:
    past = [(s.prompt, s.chosen, s.rejected) for s in person.signals if isinstance(s, Comparison)]
    return past + [(t.prompt, t.chosen, t.rejected) for t in person.targets]


MAKE: dict[str, tuple[Callable[[int, str], Row], tuple[str, ...]]] = {
    "elix": (elix, ("child", "expert", "teenager")),
    "review": (review, ("positive", "negative", "concise+positive")),
    "roleplay": (roleplay, ("ann", "bob", "cid")),
}


@pytest.mark.parametrize("format", MAKE)
def test_a_persona_is_cut_into_people_and_nothing_else_is_said_than_in_the_file(tmp_path: Path, format: str) -> None:
    make, personas = MAKE[format]
    table = [make(n, p) for p in personas for n in range(26)] + [make(n, "few") for n in range(11)]
    found = load(write(tmp_path / "rows.jsonl", table))
    assert (found.format, found.licence) == (format, "not known")
    assert Counter(found.personas.values()) == dict.fromkeys(personas, 2)
    assert found.dropped["too_few_prompts"] == 1 and found.dropped["left_over_prompts"] == 3 * 2
    for persona in personas:
        judged = set()
        for row in (r for r in table if persona in (r.get("scorer_level"), r.get("level"))):
            if format == "roleplay":
                judged.add((row["x"], row["yw"], row["yl"]))
            else:
                replies = [row["response_x"], row["response_y"]]
                judged.add((row["prompt"], replies[int(row["label"])], replies[1 - int(row["label"])]))
        mine = [p for p in found.people if found.persona(p) == persona]
        everything = [text for p in mine for text in said(p)]
        assert set(everything) <= judged and len(set(everything)) == len(everything) == 24
    for person in found.people:
        past, held = prompts(person)
        assert (len(past), len(held)) == (len(person.signals), len(person.targets)) == (8, 4)
        assert not past & held
        assert len({s.id for s in person.signals}) == 8
        assert {s.at for s in person.signals} == {"1970-01-01T00:00:00.000Z"}
    assert len({p.id for p in found.people}) == 6


@pytest.mark.parametrize("format", MAKE)
def test_neither_the_order_of_rows_nor_other_personas_matter(tmp_path: Path, format: str) -> None:
    make, personas = MAKE[format]
    table = [make(n, p) for p in personas for n in range(40)]
    mixed = [*table, make(1, "another")]
    random.Random(0).shuffle(mixed)
    found, again, later = (
        load(write(tmp_path / name, rows_), format, seed=seed, signals=5, targets=3)
        for name, rows_, seed in (("a.json", table, 3), ("b.json", mixed, 3), ("c.json", table, 4))
    )
    assert found.people == again.people and found.sha256 != again.sha256
    assert {p.id: p for p in found.people} != {p.id: p for p in later.people}
    blob = (tmp_path / "a.json").read_bytes()
    assert found.sha256 == hashlib.sha256(blob).hexdigest()


def test_a_limit_lets_personas_take_turns_and_is_extended_by_a_larger_one(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [elix(n, p) for p in LEVELS for n in range(36)])
    few, more, all_ = (load(path, limit=k, seed=1) for k in (5, 7, None))
    assert Counter(few.personas.values()) == dict.fromkeys(LEVELS, 1)
    assert more.people[:5] == few.people and all_.people[:7] == more.people and len(all_.people) == 15


def test_what_is_no_choice_is_left_out_and_counted(tmp_path: Path) -> None:
    table = [elix(n, "child") for n in range(3)]
    table += [elix(0, "child", flip=True)]  # the same judgement with its replies swapped
    table += [{**elix(1, "child"), "prompt": " what is THING 1?", "response_x": "One more reply."}]
    table += [{**elix(7, "child"), "response_x": "Same.", "response_y": "Same."}]
    table += [elix(8, "child"), {**elix(8, "child"), "label": 1 - elix(8, "child")["label"]}]
    table += [{**elix(9, "child"), "level_x": "teenager", "level_y": "expert"}]
    found = load(write(tmp_path / "rows.json", table), signals=2, targets=1)
    assert {k: v for k, v in found.dropped.items() if v} == {
        "duplicates": 1, "other_pairs_of_a_prompt": 1, "identical_replies": 1, "contradictions": 2,
        "neither_reply_at_their_level": 1,
    }  # fmt: skip
    (person,) = found.people
    assert set.union(*prompts(person)) == {f"what is thing {n}?" for n in range(3)}
    with pytest.raises(ConfigError, match=r"nobody has 8 signals and 4 targets \(.*too_few_prompts 1"):
        load(str(tmp_path / "rows.json"))


def test_who_they_are_is_told_where_the_file_tells_it(tmp_path: Path) -> None:
    def oracles(table: list[Row], name: str) -> set[str]:
        return {p.oracle for p in load(write(tmp_path / name, table), signals=2, targets=1).people}

    assert oracles([roleplay(n, "ann") for n in range(3)], "a.json") == {"Somebody called ann."}
    plain = [{**roleplay(n, "ann"), "score_persona": "Likes tea."} for n in range(3)]
    assert oracles(plain, "b.json") == {"Likes tea."}
    assert oracles([{**roleplay(n, "ann"), "score_persona": None} for n in range(3)], "c.json") == {""}
    assert oracles([roleplay(n, "ann") for n in range(3)], "d.csv") == {""}  # an object spelled out, not a sentence
    assert oracles([review(n, "negative+concise") for n in range(3)], "e.json") == {
        "Write reviews that are negative and concise."
    }


def test_a_row_of_alignx_is_a_person(tmp_path: Path) -> None:
    table = [alignx(n) for n in range(5)]
    known = load(write(tmp_path / "rows.json", table))
    assert known.format == "alignx" and len(known.people) == 5
    by_prompt = {p.targets[0].prompt: p for p in known.people}
    for row in table:
        person = by_prompt[row["prompt"]]
        assert [s.content() for s in person.signals] == row[HISTORY] and person.oracle == ""
        assert said(person)[-1] == tuple(row[k] for k in ("prompt", "chosen", "rejected"))
    short = load(str(tmp_path / "rows.json"), signals=2, targets=2, limit=3)
    for person in short.people:
        past, held = prompts(person)
        row = next(r for r in table if r["prompt"] == person.targets[0].prompt)
        order = [s for p in row[HISTORY] for s in person.signals if s.content() == p]
        assert (len(past), len(held)) == (2, 2) and not past & held and tuple(order) == person.signals
    shuffled = write(tmp_path / "more.json", [*reversed(table)])
    assert load(shuffled).people == known.people
    assert load(shuffled, signals=2, targets=2, limit=3).people == short.people


def test_rows_of_alignx_without_past_pairs_are_counted(tmp_path: Path) -> None:
    bare = {k: v for k, v in alignx(1).items() if k != HISTORY}
    asked = {**alignx(2), "prompt": "POST  1009"}
    table = [alignx(0), alignx(0), bare, {**alignx(3), HISTORY: []}, asked, {**alignx(4), "chosen": "No 4"}]
    found = load(write(tmp_path / "rows.json", table), "alignx")
    assert len(found.people) == 1
    assert found.dropped == {"duplicates": 1, "no_pairs": 2, "own_prompt_in_history": 1, "identical_replies": 1}


# Files ----------------------------------------------------------------------------------------------------------
def test_every_kind_of_file_gives_the_same_people(tmp_path: Path) -> None:
    table = [elix(n, p) for p in ("child", "expert") for n in range(12)]
    table[0]["response_x"] = "A line\u2028and\nanother, \"quoted\""
    found = [load(write(tmp_path / f"rows.{end}", table)).people for end in ("json", "jsonl", "csv")]
    assert found[0] == found[1] == found[2]


def test_a_folder_gives_one_split_and_the_licence_of_its_card(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = [elix(n, "child") for n in range(24)]
    write(tmp_path / "data" / "train-00000-of-00002.jsonl", table[:10])
    write(tmp_path / "data" / "train-00001-of-00002.jsonl", table[10:])
    write(tmp_path / "data" / "test-00000-of-00001.jsonl", [elix(n, "expert") for n in range(12)])
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\ntags:\n- x\n---\n# A card\n")
    found = load(str(tmp_path))
    assert set(found.personas.values()) == {"child"} and len(found.people) == 2 and found.licence == "cc-by-4.0"
    assert found.people == load(write(tmp_path / "one.jsonl", table)).people
    assert set(load(str(tmp_path), split="test").personas.values()) == {"expert"}
    with pytest.raises(ConfigError, match="has no split 'validation', but test, train"):
        load(str(tmp_path), split="validation")


@pytest.mark.parametrize("format", ["elix", "alignx", "roleplay"])
def test_parquet_and_arrow_give_what_json_gives(tmp_path: Path, format: str) -> None:
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    make: dict[str, list[Row]] = {
        "elix": [elix(n, "child") for n in range(12)],
        "alignx": [alignx(n) for n in range(12)],
        "roleplay": [roleplay(n, "ann") for n in range(12)],
    }
    table = pa.Table.from_pylist(make[format])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    want = load(write(tmp_path / "rows.json", make[format])).people
    assert load(str(tmp_path / "rows.parquet")).people == load(str(tmp_path / "rows.arrow")).people == want
    make[format][3].pop("prompt", make[format][3].pop("x", None))
    parquet.write_table(pa.Table.from_pylist(make[format]), tmp_path / "bad.parquet")
    with pytest.raises(PopiError, match=r"bad.parquet: row 4: (prompt|x) must be text"):
        load(str(tmp_path / "bad.parquet"))
    for name in ("broken.parquet", "broken.arrow"):
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(ConfigError, match=rf"^[^\n]*{name}: not readable as [^\n]*$"):
            load(str(tmp_path / name))


def test_a_damaged_table_is_one_line_and_does_not_end_the_program(tmp_path: Path) -> None:
    """A text that is not UTF-8, and one that claims more than the file holds: pyarrow would read what is not there."""
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    table = pa.Table.from_pylist([elix(n, "child") for n in range(12)])
    parquet.write_table(table, tmp_path / "rows.parquet", compression="none", use_dictionary=False)
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    whole, ends = (tmp_path / "rows.arrow").read_bytes(), b"".join(struct.pack("<i", 5 * n) for n in range(13))
    assert ends in whole  # where each "child" of a column ends
    (tmp_path / "long.arrow").write_bytes(whole.replace(ends, ends[:-4] + struct.pack("<i", 2**30)))
    for name in ("rows.parquet", "rows.arrow"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"child", b"ch\xb5ld"))
    for name in ("rows.parquet", "rows.arrow", "long.arrow"):
        with pytest.raises(ConfigError, match=rf"^[^\n]*{name}: not readable as [^\n]*$"):
            load(str(tmp_path / name))


def test_without_pyarrow_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="install pyarrow"):
        load(str(tmp_path / "rows.parquet"))


@pytest.mark.filterwarnings("ignore")  # what the library warns of in its own pickling
def test_what_the_library_loads_and_saves_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    table = [roleplay(n, "ann") for n in range(12)]
    path = write(tmp_path / "train.jsonl", table)
    source = records.fetch(str(tmp_path), "train")  # a folder stands for the hub: nothing is downloaded
    assert [row for _, row in source.rows] == table
    library.load_dataset(str(tmp_path), split="train").save_to_disk(tmp_path / "one")
    library.load_dataset(str(tmp_path)).save_to_disk(tmp_path / "splits")
    for folder in ("one", "splits"):
        assert load(str(tmp_path / folder)).people == load(path).people
    with pytest.raises(ConfigError, match=r"^cannot load [^\n]*$"):
        records.fetch(str(tmp_path), "nothing")


@pytest.mark.parametrize("name", [*PUBLIC.values(), "asap7772/ELIX_generations_autolabel"])
def test_a_public_name_is_not_downloaded_unasked(name: str) -> None:
    with pytest.raises(ConfigError, match=r"downloaded only with allow_download=True, .*or give a local file"):
        load(name)


def test_without_the_library_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"install `datasets`.* or give a local file"):
        load(PUBLIC["elix"], allow_download=True)


# Bad input ------------------------------------------------------------------------------------------------------
GOOD: dict[str, list[Row]] = {
    "elix": [elix(n, "child") for n in range(12)],
    "review": [review(n, "positive") for n in range(12)],
    "roleplay": [roleplay(n, "ann") for n in range(12)],
    "alignx": [alignx(n) for n in range(2)],
}


@pytest.mark.parametrize(
    ("format", "change", "says"),
    [
        ("elix", {"label": 2}, "row 2: label must be 0"),
        ("elix", {"label": None}, "row 2: label must be 0"),
        ("elix", {"label": float("nan")}, "row 2: label must be 0"),
        ("elix", {"label": 10**400}, "row 2: label must be 0"),
        ("elix", {"response_x": " "}, "row 2: response_x must be text"),
        ("elix", {"response_y": "a\0b"}, "row 2: (chosen|rejected) contains a NUL"),
        ("elix", {"prompt": "\ud800"}, "row 2: prompt is not valid Unicode"),
        ("elix", {"scorer_level": 3}, "row 2: scorer_level must be text"),
        ("review", {"scorer_level": "positive\udc00"}, "row 2: scorer_level is not valid Unicode"),
        ("roleplay", {"level": "ann\udc00"}, "row 2: level is not valid Unicode"),
        ("roleplay", {"score_persona": {"persona_description": "\udc00"}}, "row 2: score_persona is not valid Unicode"),
        ("roleplay", {"yw": []}, "row 2: yw must be text"),
        ("roleplay", {"score_persona": 7}, "row 2: score_persona must hold"),
        ("roleplay", {"score_persona": {"persona_description": 7}}, "row 2: score_persona must hold"),
        ("alignx", {HISTORY: {}}, f"row 2: {HISTORY} must be a list"),
        ("alignx", {HISTORY: [{"prompt": "x", "chosen": "y"}]}, f"row 2, {HISTORY} 1: rejected is missing"),
        ("alignx", {HISTORY: ["x"]}, f"row 2, {HISTORY} 1: not a JSON object"),
        ("alignx", {"ground_truth_persona": ""}, "row 2: ground_truth_persona must be text"),
        ("alignx", {"ground_truth_persona": "\udc00"}, "row 2: ground_truth_persona is not valid Unicode"),
        ("alignx", {"chosen": None}, "row 2: chosen must be text"),
    ],
)
def test_a_bad_row_refuses_the_file_and_is_named(tmp_path: Path, format: str, change: Row, says: str) -> None:
    table = [dict(row) for row in GOOD[format]]
    table[1] |= change
    with pytest.raises(PopiError, match=says) as caught:
        load(write(tmp_path / "rows.json", table), limit=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("format", "column"), [("elix", c) for c in elix(0, "child") if "level_" not in c])
def test_a_missing_column_is_named(tmp_path: Path, format: str, column: str) -> None:
    table = [{k: v for k, v in row.items() if k != column} if i == 5 else row for i, row in enumerate(GOOD[format])]
    with pytest.raises(PopiError, match=f"line 6: {column} is missing"):
        load(write(tmp_path / "rows.jsonl", table))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.csv", b"", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b"{}", "must be a JSON list"),
        ("a.json", b"[", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b'["x"]', "row 1: not a JSON object"),
        ("a.json", b'[{"prompt": "x"}]', "row 1: not recognised as one of elix, review, roleplay, alignx"),
        ("a.json", json.dumps([{**elix(0, "child"), "scorer_level": "cook"}]).encode(), "row 1: not recognised"),
        ("a.json", b"\xff", "not UTF-8"),
        ("a.jsonl", b"\xff", "not UTF-8"),
        ("a.jsonl", b'\n{"x": 1\n', "line 2: not JSON"),
        ("a.csv", b"x,yw\n1,2\n1,2,3\n", "row 1: not recognised"),
        ("a.csv", b"x,yw,yl,level\n1,2,3,4\n1,2,3,4,5\n", "row 2: more cells"),
        ("a.csv", b"x,yw,yl,level\n1,2,3,4\n1,2,3\n", "row 2: level must be text"),
        ("a.csv", b'x,yw,yl,level\n"1"2,3,4,5\n', "row 1: not CSV"),
        ("a.txt", b"x", "must end in one of .jsonl, .json, .csv"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PopiError, match=says) as caught:
        load(str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_asked_for_must_make_sense(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", GOOD["elix"])
    asked: list[Row] = [{"format": "elix2"}, {"limit": 0}, {"signals": 0}, {"targets": -1}]
    for wrong in asked:
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
            load(path, **wrong)
    for name in (str(tmp_path / "nothing.json"), "some/dataset", "a" * 5000):
        with pytest.raises(ConfigError, match=r"no such file or folder, nor one of Asap7772|cannot read"):
            load(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no file in it ends in one of"):
        load(str(tmp_path / "empty"))


# Rows to evaluate -----------------------------------------------------------------------------------------------
def test_opposite_people_become_couples_on_one_pair(tmp_path: Path) -> None:
    table = [elix(n, p) for p in ("child", "expert", "teenager") for n in range(36)]
    table += [r | {k: r[k] + " Again." for k in ("response_x", "response_y")} for r in table]
    found = load(write(tmp_path / "rows.json", table))  # two pairs of every prompt: both take the same one
    out = rows(found)
    named = {r.id: r for r in out}
    assert len(named) == len(out) == 2 * 3 * 4 and {r.user_key for r in out} == {"child", "expert"}
    for row in out:
        mirror = named[row.mirror]
        assert mirror.mirror == row.id and mirror.block == row.block and mirror.user_key != row.user_key
        assert (mirror.prompt, mirror.chosen, mirror.rejected) == (row.prompt, row.rejected, row.chosen)
        assert (mirror.oracle, mirror.opposite_oracle) == (row.opposite_oracle, row.oracle) and row.oracle
        assert row.user_key in row.oracle and row.user_key in row.chosen
    for row, donors in zip(out, draw_donors(out, 0), strict=True):
        assert out[donors.opposite].id == row.mirror


def test_a_target_is_in_one_couple_at_most(tmp_path: Path) -> None:
    kind, blunt = ({"ground_truth_persona": p} for p in ("Be kind.", "Be blunt."))
    table = [alignx(0) | kind | {HISTORY: [pair(n)]} for n in (1, 2, 3)]
    table += [alignx(0, -1) | blunt | {HISTORY: [pair(n)]} for n in (4, 5)]
    out = rows(load(write(tmp_path / "rows.json", table)))
    assert Counter(r.user_key for r in out) == {"Be kind.": 2, "Be blunt.": 2}
    assert len({r.id for r in out}) == len({r.mirror for r in out}) == 4


def test_two_opposite_personas_need_no_common_pair(tmp_path: Path) -> None:
    table = [review(n + 50 * (p == "negative"), p) for p in ("positive", "negative") for n in range(12)]
    out = rows(load(write(tmp_path / "rows.json", table)))
    assert len(out) == 8 and not any(r.mirror for r in out)
    assert {(r.oracle, r.opposite_oracle) for r in out} == {
        ("Write reviews that are positive.", "Write reviews that are negative."),
        ("Write reviews that are negative.", "Write reviews that are positive."),
    }
    kind, blunt = ({"ground_truth_persona": p} for p in ("Be kind.", "Be blunt."))
    judged = [alignx(0) | kind, alignx(1) | kind, alignx(2) | blunt, alignx(3) | blunt]
    out = rows(load(write(tmp_path / "alignx.json", judged)))
    assert Counter((r.user_key, r.oracle, r.opposite_oracle) for r in out) == {
        ("Be kind.", "Be kind.", "Be blunt."): 2, ("Be blunt.", "Be blunt.", "Be kind."): 2
    }  # fmt: skip


@pytest.mark.parametrize("format", ["roleplay", "alignx", "elix"])
def test_where_no_opposite_is_known_nothing_is_made_up(tmp_path: Path, format: str) -> None:
    table = {
        "roleplay": [roleplay(n, p) for p in ("ann", "bob") for n in range(12)],
        "alignx": [alignx(n) for n in range(8)],
        "elix": [elix(n, p) for p in ("child", "teenager") for n in range(12)],
    }[format]
    found = load(write(tmp_path / "rows.json", table))
    out = rows(found)
    assert len(out) == 8 and {(r.oracle, r.opposite_oracle, r.mirror, r.block) for r in out} == {("", "", "", "")}
    assert [r.chosen for r in out] == [t.chosen for p in found.people for t in p.targets]
    for row, donors in zip(out, draw_donors(out, 0), strict=True):
        assert out[donors.opposite].user_key != row.user_key
