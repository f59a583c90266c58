"""Evaluation data: what is dropped is counted, nothing leaks, lengths say nothing, draws repeat."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from popi_edge.errors import ConfigError, PopiError, SignalError
from popi_edge.signals import Comparison
from popi_training.corpus import FOLDER
from popi_training.evaluate.conditions import draw_donors, signals_key, user_signals
from popi_training.evaluate.data import HISTORY, Dataset, half_of, load, same_text

KIND, BLUNT = "Answer in a kind way.", "Answer in a blunt way."


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def alignx_row(number: int, persona: str, past: tuple[int, ...] = (100, 101, 102, 103)) -> dict[str, Any]:
    def one(n: int) -> dict[str, str]:
        texts = [f"Dear friend, it is {n}.", f"It is {n}."]
        kind, blunt = texts
        return pair(f"What is number {n}?", *((kind, blunt) if persona == KIND else (blunt, kind)))

    history = [one(n) for n in past]
    return {**one(number), "ground_truth_persona": persona, "profile": "Likes music", HISTORY: history}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def alignx(tmp_path: Path, rows: list[Any]) -> Path:
    return write(tmp_path / "rows.json", rows)


def both(*numbers: int) -> list[Any]:
    return [alignx_row(n, p) for n in numbers for p in (KIND, BLUNT)]


def test_a_row_is_read_as_it_stands(tmp_path: Path) -> None:
    data = load(alignx(tmp_path, both(1, 2)), "alignx")
    row = data.rows[0]
    assert (row.prompt, row.chosen, row.rejected) == ("What is number 1?", "Dear friend, it is 1.", "It is 1.")
    assert [s.content() for s in row.signals] == both(1)[0][HISTORY]
    assert (row.user_key, row.oracle, row.opposite_oracle) == (KIND, KIND, BLUNT)
    assert row.profile is not None and row.profile.text == "Likes music"
    assert user_signals(row, True) == (row.profile, *row.signals)
    assert user_signals(row, False) == row.signals
    assert row.cluster == row.prompt
    assert data.rows[1].oracle == BLUNT


def test_a_row_whose_own_prompt_is_in_its_history_is_dropped_and_counted(tmp_path: Path) -> None:
    leaky = alignx_row(3, KIND, past=(100, 3, 101, 102))
    respelled = alignx_row(4, KIND)
    respelled[HISTORY][2]["prompt"] = " what is  NUMBER 4?\n"
    data = load(alignx(tmp_path, [*both(1, 2), leaky, respelled]), "alignx")
    assert len(data.rows) == 4
    assert data.dropped["own_prompt_in_history"] == 2
    for row in data.rows:
        assert same_text(row.prompt) not in {same_text(s.prompt) for s in row.signals if isinstance(s, Comparison)}


def test_identical_replies_are_no_choice(tmp_path: Path) -> None:
    same = {**alignx_row(3, KIND), "chosen": "Yes.", "rejected": "Yes."}
    data = load(alignx(tmp_path, [*both(1), same]), "alignx")
    assert len(data.rows) == 2 and data.dropped["identical_replies"] == 1


def test_the_halves_part_the_prompts(tmp_path: Path) -> None:
    path = alignx(tmp_path, both(*range(20)))
    dev, final, whole = (load(path, "alignx", half=h) for h in ("dev", "final", "all"))
    assert {r.id for r in dev.rows} | {r.id for r in final.rows} == {r.id for r in whole.rows}
    assert not {r.prompt for r in dev.rows} & {r.prompt for r in final.rows}
    assert dev.dropped["other_half"] == len(final.rows)


def test_the_half_is_the_last_bit_of_the_prompts_hash() -> None:
    assert half_of("hello") == "dev"  # SHA-256 … 9824, even
    assert half_of("abc") == "final"  # SHA-256 … 15ad, odd


def test_a_limit_draws_both_personas_and_repeats(tmp_path: Path) -> None:
    path = alignx(tmp_path, both(*range(20)))
    drawn = load(path, "alignx", limit=8, seed=3).rows
    assert drawn == load(path, "alignx", limit=8, seed=3).rows
    assert Counter(r.user_key for r in drawn) == {KIND: 4, BLUNT: 4}
    assert {r.id for r in drawn} <= {r.id for r in load(path, "alignx", limit=14, seed=3).rows}
    assert {r.id for r in drawn} != {r.id for r in load(path, "alignx", limit=8, seed=4).rows}


def test_signals_are_the_same_in_every_run(tmp_path: Path) -> None:
    path = alignx(tmp_path, both(1, 2))
    assert load(path, "alignx") == load(path, "alignx")


def test_rows_with_one_history_share_a_key_and_order_counts(tmp_path: Path) -> None:
    first, second = load(alignx(tmp_path, both(1, 2)), "alignx").rows[::2]
    assert first.id != second.id and signals_key(first.signals) == signals_key(second.signals)
    assert signals_key(first.signals) != signals_key(first.signals[::-1])


def test_donors_are_opposite_other_and_never_know_the_pair(tmp_path: Path) -> None:
    rows = [*both(*range(8)), *(alignx_row(n, p, past=(0, 1, 102, 103)) for n in (8, 9) for p in (KIND, BLUNT))]
    data = load(alignx(tmp_path, rows), "alignx")
    for seed in range(5):
        drawn = draw_donors(data.rows, seed)
        assert drawn == draw_donors(data.rows, seed)
        for i, (row, d) in enumerate(zip(data.rows, drawn, strict=True)):
            assert data.rows[d.opposite].user_key != row.user_key
            assert i not in (d.shuffled, d.shuffled_too) and d.shuffled != d.shuffled_too
            for k in (d.opposite, d.shuffled, d.shuffled_too):
                assert row.prompt not in {s.prompt for s in data.rows[k].signals if isinstance(s, Comparison)}
    assert len({tuple(draw_donors(data.rows, s)) for s in range(5)}) == 5


def test_no_donor_is_one_clear_line(tmp_path: Path) -> None:
    rows = [alignx_row(1, KIND, past=(2, 100)), alignx_row(2, BLUNT, past=(1, 100))]
    data = load(alignx(tmp_path, rows), "alignx")
    with pytest.raises(ConfigError, match="too few rows"):
        draw_donors(data.rows, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen": None}, "row 2: chosen must be text"),
        ({"prompt": "  "}, "row 2: prompt must be text"),
        ({HISTORY: []}, f"row 2: {HISTORY} must be a list"),
        ({HISTORY: [{"prompt": "x", "chosen": "y"}]}, f"row 2, {HISTORY} 1: rejected is missing"),
        ({HISTORY: ["x"]}, f"row 2, {HISTORY} 1: not a JSON object"),
        ({"ground_truth_persona": "A third."}, "has 3"),
        ({"profile": 7}, "row 2: profile must be text"),
        ({"prompt": "\ud800"}, "row 2: prompt is not valid Unicode"),
        ({"chosen": "\ud800"}, "row 2: chosen is not valid Unicode"),
        ({"profile": "\ud800"}, "row 2: profile is not valid Unicode"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    rows = both(1, 2)
    rows[1] |= change
    with pytest.raises(PopiError, match=says):
        load(alignx(tmp_path, rows), "alignx")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '["x"]', "[" * 100_000, f"[1{5000 * '0'}]"])
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(PopiError, match=r"rows\.json"):
        load(write(tmp_path / "rows.json", content), "alignx")


def test_files_and_options_that_make_no_sense(tmp_path: Path) -> None:
    good = alignx(tmp_path, both(1, 2))
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path, options in (
        (tmp_path / "missing", {"format": "alignx"}),
        (binary, {"format": "alignx"}),
        (good, {"format": "csv"}),
        (good, {"format": "alignx", "half": "both"}),
        (good, {"format": "alignx", "limit": 1}),
        (good, {"format": "alignx", "part": "phrasings"}),
        (FOLDER, {"format": "corpus", "part": "prompts", "half": "dev"}),
    ):
        with pytest.raises(ConfigError):
            load(path, **options)


def test_more_rows_of_the_corpus_than_could_be_drawn_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit is 100001; of our own corpus at most 100,000 rows"):
        load(tmp_path, "corpus", limit=100_001)


# OneStopEnglish: levels --------------------------------------------------------------------------------------
EASY = "the dog ran to the old house and sat by the door"
HARD = "a canine sprinted towards its decrepit residence, settling beside the entrance"


def paragraph(doc: int, para: int, *, extra_easy: int = 0, extra_hard: int = 0) -> dict[str, Any]:
    easy = f"{EASY} in story {doc} part {para}" + " once more" * extra_easy
    hard = f"{HARD} within chronicle {doc} section {para}" + " henceforth" * extra_hard
    return {"doc": f"WNL Story{doc}", "para": para, "elementary": easy, "intermediate": easy, "advanced": hard}


def onestop(tmp_path: Path, items: list[Any]) -> Path:
    return write(tmp_path / "levels.jsonl", "".join(json.dumps(i) + "\n" for i in items))


def stories(tmp_path: Path, **options: Any) -> Dataset:
    items = [paragraph(d, p, extra_easy=6 * (p == 2), extra_hard=d % 3) for d in range(24) for p in (1, 2, 3)]
    return load(onestop(tmp_path, items), "onestopenglish", **options)


def test_longer_wins_is_right_for_half_of_each_users_rows(tmp_path: Path) -> None:
    data = stories(tmp_path)
    assert len(data.rows) >= 40
    for level in ("elementary", "advanced"):
        longer = [len(r.chosen) > len(r.rejected) for r in data.rows if r.user_key == level]
        assert sum(longer) * 2 == len(longer)
        past = [len(s.chosen) > len(s.rejected) for r in data.rows if r.user_key == level for s in r.signals]
        assert sum(past) * 2 == len(past)


def test_every_paragraph_serves_both_users_with_signals_from_other_stories(tmp_path: Path) -> None:
    data = stories(tmp_path)
    assert Counter(Counter((r.prompt, *sorted((r.chosen, r.rejected))) for r in data.rows).values()).keys() == {2}
    for row in data.rows:
        prompts = [s.prompt for s in row.signals]
        assert len(set(prompts)) == 4 and row.prompt not in prompts
        assert {half_of(p) for p in prompts} == {half_of(row.prompt)}
        for s in row.signals:
            assert (EASY in s.chosen) == (EASY in row.chosen) == (row.user_key == "elementary")
        for word in ("easy", "element", "advanc", "level", "simple", "WNL"):
            assert word not in row.prompt
    assert data == stories(tmp_path)
    assert data.rows != stories(tmp_path, seed=1).rows


def test_a_limit_keeps_blocks_whole(tmp_path: Path) -> None:
    assert len(stories(tmp_path, limit=9).rows) == 8
    drawn = stories(tmp_path, limit=8).rows
    assert len(drawn) == 8
    assert sum(len(r.chosen) > len(r.rejected) for r in drawn) == 4
    assert Counter(r.user_key for r in drawn) == {"elementary": 4, "advanced": 4}


def test_levels_that_hardly_differ_are_dropped_and_counted(tmp_path: Path) -> None:
    items = [paragraph(d, p, extra_easy=6 * (p == 2)) for d in range(24) for p in (1, 2)]
    items.append({**paragraph(0, 9), "advanced": paragraph(0, 9)["elementary"] + " now"})
    data = load(onestop(tmp_path, items), "onestopenglish")
    assert data.dropped["near_identical"] == 1
    assert len(data.rows) // 2 + data.dropped["unmatched_length"] == 48


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", "not JSON"), ("[]", "not a JSON object"), ('{"doc": "x", "para": "1"}', "para must be a whole number"),
     ('{"doc": "WNL", "para": 1}', "doc has no name"), ('{"doc": "x", "para": 1}', "elementary is missing"),
     ('{"doc": "\\ud800", "para": 1}', "doc is not valid Unicode"), (f"[1{5000 * '0'}]", "not JSON")],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "levels.jsonl", json.dumps(paragraph(1, 1)) + "\n\n" + line + "\n")
    with pytest.raises(SignalError, match=f"line 3: {says}"):
        load(path, "onestopenglish")


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, end: str) -> None:
    """Inside a JSON text these may stand as they are."""
    items = [paragraph(d, p, extra_easy=6 * (p == 2), extra_hard=d % 3) for d in range(24) for p in (1, 2, 3)]
    items[0]["elementary"] += f"{end}and stayed"
    path = write(tmp_path / "levels.jsonl", "".join(json.dumps(i, ensure_ascii=False) + "\r\n" for i in items))
    assert len(load(path, "onestopenglish").rows) > 0


def test_too_few_stories_is_one_clear_line(tmp_path: Path) -> None:
    items = [paragraph(d, p, extra_easy=6 * (p == 2)) for d in range(2) for p in (1, 2)]
    with pytest.raises(ConfigError, match=r"too few stories|no row"):
        load(onestop(tmp_path, items), "onestopenglish")
