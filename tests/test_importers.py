"""Importing: the good lines go in, the bad ones are named, and nothing is half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popi_edge.errors import ConfigError, SignalError, StoreError
from popi_edge.importers import detect, import_file, jsonl, read
from popi_edge.importers.alignx import HISTORY
from popi_edge.importers.jsonl import LineError, Record, Skipped, records
from popi_edge.signals import Comparison, Conversation, Edit, Profile, Signal, Statement, to_json
from popi_edge.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "popi.db") as opened:
        yield opened


def write(tmp_path: Path, data: bytes | str, name: str = "in.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(*values: Any) -> str:
    return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values)


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"kind": "statement", "text": text, **more}


def found(path: Path, **options: Any) -> tuple[list[Signal], list[LineError], list[Skipped]]:
    items = [item for _, item in read(path, **options)]
    errors = [i for i in items if isinstance(i, LineError)]
    skipped = [i for i in items if isinstance(i, Skipped)]
    return [i for i in items if not isinstance(i, LineError | Skipped)], errors, skipped


# jsonl ------------------------------------------------------------------------------------------------------


BROKEN = {
    b"{": "not JSON",
    b'{"kind": "statement", "text": "a"': "not JSON",
    b'{"kind": "statement", "text": "\xff\xfe"}': "not valid UTF-8 at byte 32",
    b'{"kind": "statement", "text": "a\x00b"}': "not JSON",
    b'{"kind": "statement", "text": "a\\u0000b"}': "NUL",
    b'{"kind": "statement", "text": "\\ud800"}': "not valid Unicode",
    b'{"kind": "statement", "text": "a", "text": "b"}': "'text' is there twice",
    b'{"kind": "rating", "prompt": "a", "response": "b", "score": NaN}': "NaN is not JSON",
    b'{"kind": "rating", "prompt": "a", "response": "b", "score": 7}': "score",
    b'{"kind": "rating", "prompt": "a", "response": "b", "score": ' + b"9" * 5000 + b"}": "too many digits",
    b'{"kind": "statement"}': "text is missing",
    b'{"kind": "statement", "text": "a", "extra": 1}': "'extra' is not a field",
    b'{"kind": "opinion", "text": "a"}': "kind is 'opinion'",
    b'["statement"]': "not a JSON object",
    b"3": "not a JSON object",
    b'{"a": ' * 100_000: "nested too deeply",
    b"hello": "not JSON",
}


def test_each_broken_line_is_named_and_every_good_one_goes_in(store: Store, tmp_path: Path) -> None:
    good = json.dumps(say("good")).encode()
    data = b"".join(good.replace(b"good", b"good %d" % i) + b"\n" + bad + b"\n" for i, bad in enumerate(BROKEN))
    report = import_file(store, write(tmp_path, data))
    assert (report.read, report.added, report.error_count) == (len(BROKEN),) * 3
    assert [e.line for e in report.errors] == list(range(2, 2 * len(BROKEN) + 1, 2))
    for error, words in zip(report.errors, BROKEN.values(), strict=True):
        assert words in error.error
        assert len(error.error) < 200
    assert report.errors[10].field == "text" and report.errors[8].field == "score"


def test_all_errors_are_counted_and_the_first_ones_kept(store: Store, tmp_path: Path) -> None:
    report = import_file(store, write(tmp_path, "x\n" * 1000 + lines(say("a"))))
    assert (report.error_count, len(report.errors), report.added) == (1000, 20, 1)


def test_a_megabyte_is_accepted_and_a_line_past_the_limit_is_one_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_RECORD", 2_000_000)
    monkeypatch.setattr(jsonl, "CHUNK", 1000)
    data = lines(say("é" * 900_000), say("y" * 2_000_001), say("z"), say("w" * 2_000_001)).removesuffix("\n")
    signals, errors, _ = found(write(tmp_path, data))
    assert [len(s.texts()[0]) for s in signals] == [900_000, 1]
    assert [(e.line, "longer than" in e.error) for e in errors] == [(2, True), (4, True)]


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_harmless(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + lines(say("a"), say("b")).replace("\n", "\r\n\r\n  \r\n").encode() + b"x"
    signals, errors, _ = found(write(tmp_path, data))
    assert [s.texts() for s in signals] == [["a"], ["b"]]
    assert [e.line for e in errors] == [7]


def test_what_export_and_list_wrote_comes_back_the_same(store: Store, tmp_path: Path) -> None:
    signals: list[Signal] = [Statement("a", user="ann"), Comparison("a", "b", "c"), Profile("[{\"x\": \"}\\\\\"}]")]
    values = [to_json(s) for s in signals]
    for name, data in (("l", lines(*values)), ("a", json.dumps(values)), ("p", json.dumps(values, indent=1))):
        assert found(write(tmp_path, data, name))[0] == signals
    report = import_file(store, write(tmp_path, lines(*values)))
    assert (report.added, report.duplicates, report.users) == (3, 0, {"me", "ann"})
    report = import_file(store, write(tmp_path, lines(*values)))
    assert (report.added, report.duplicates) == (0, 3)
    assert store.get(signals[0].id).signal == signals[0]


def test_under_another_user_the_same_file_is_other_signals(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path, lines(to_json(Statement("a")), to_json(Statement("b"))))
    assert import_file(store, path).added == 2
    assert import_file(store, path, user="bob", source="s").added == 2
    assert {s.signal.source for s in store.signals("bob")} == {"s"} and store.count() == 2


def test_an_id_of_another_signal_is_an_error_of_its_line_and_the_rest_goes_in(store: Store, tmp_path: Path) -> None:
    first = Statement("a")
    store.add([first])
    report = import_file(store, write(tmp_path, lines(say("b"), say("c", id=first.id), say("d"))))
    assert (report.added, report.error_count, report.errors[0].line, report.errors[0].field) == (2, 1, 2, "id")


def test_a_full_disk_half_way_keeps_whole_batches_and_says_how_many(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path, lines(*[say(f"{i} " + "x" * 2000) for i in range(200)]))
    pages = store.conn.execute("PRAGMA page_count").fetchone()[0]
    store.conn.execute(f"PRAGMA max_page_count = {pages + 60}").fetchone()
    with pytest.raises(StoreError, match=r"disk is full.*signals were added before"):
        import_file(store, path, batch=10)
    kept = store.count()
    assert 0 < kept < 200 and kept % 10 == 0
    store.conn.execute("PRAGMA max_page_count = 1000000").fetchone()
    assert import_file(store, path).added == 200 - kept


def test_progress_tells_every_byte_once(store: Store, tmp_path: Path) -> None:
    data = lines(*[say(f"{i}" * 100) for i in range(300)])
    for name, text in (("a", data), ("b", json.dumps([json.loads(x) for x in data.splitlines()]))):
        told: list[int] = []
        import_file(store, write(tmp_path, text, name), seen=told.append)
        assert sum(told) == len(text)


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path, str(tmp_path)),
        (Path("a\0b"), "null"),
        (write(tmp_path, b"\x1f\x8b\x08rest"), "compressed"),
    ):
        with pytest.raises(SignalError, match=words):
            list(read(path))
    with pytest.raises(ConfigError, match="csv"):
        list(read(write(tmp_path, ""), "csv"))
    with pytest.raises(SignalError, match="user"):
        list(read(write(tmp_path, ""), user="a\nb"))


# arrays -----------------------------------------------------------------------------------------------------


ANY = st.recursive(
    st.none() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3)
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.text(), ANY, max_size=3), max_size=5),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.integers(1, 40),
)
def test_an_array_is_split_into_its_objects_however_it_is_laid_out_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], indent: int | None, plain: bool, chunk: int
) -> None:
    monkeypatch.setattr(jsonl, "CHUNK", chunk)
    text = json.dumps(values, indent=indent, ensure_ascii=plain)
    try:
        path = write(tmp_path, text)
    except UnicodeEncodeError:  # a lone surrogate cannot be in a file
        return
    got = [r for r in records(path) if isinstance(r, Record)]
    assert [r.value for r in got] == values and [r.row for r in got] == list(range(len(values)))
    assert all(text.split("\n")[r.line - 1].lstrip(" [").startswith("{") for r in got)


def test_a_broken_object_in_an_array_is_named_by_its_line_and_the_others_are_read(tmp_path: Path) -> None:
    data = '[\n{"kind": "statement", "text": "a"},\n{"kind": statement},\n\n{"kind": "statement", "text": "b"}\n]'
    signals, errors, _ = found(write(tmp_path, data))
    assert [s.texts() for s in signals] == [["a"], ["b"]] and [e.line for e in errors] == [3]


def test_an_array_that_is_cut_off_gives_what_was_whole_and_says_so(tmp_path: Path) -> None:
    data = json.dumps([say("a"), say("b")], indent=1)
    signals, errors, _ = found(write(tmp_path, data[:-10]))
    assert [s.texts() for s in signals] == [["a"]]
    assert "cut off" in errors[0].error and errors[0].line == 6


# alignx -----------------------------------------------------------------------------------------------------


def row(n: int, **changes: Any) -> dict[str, Any]:
    pairs = [{"prompt": f"p{n}{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(2)]
    target = {"prompt": f"TARGET{n}", "chosen": "TARGET-C", "rejected": "TARGET-R"}
    rest = {"ground_truth_persona": "PERSONA", "profile": f"Likes tea {n}", HISTORY: pairs}
    return {**target, **rest, **changes}


def test_alignx_gives_history_and_profile_of_one_user_a_row_and_never_the_target(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([row(0), row(1)], indent=1), "rows.json")
    report = import_file(store, path)
    assert (report.format, report.read, report.added, report.users) == ("alignx", 6, 6, {"alignx-0000", "alignx-0001"})
    first, *pairs = (s.signal for s in store.signals("alignx-0001"))
    assert isinstance(first, Profile) and first.text == "Likes tea 1"
    assert [type(s) for s in pairs] == [Comparison, Comparison] and pairs[1].content()["prompt"] == "p11"
    everything = json.dumps([to_json(s.signal) for user in store.users() for s in store.signals(user)])
    assert "TARGET" not in everything and "PERSONA" not in everything
    assert import_file(store, path).duplicates == 6
    assert import_file(store, path, user="ann").users == {"ann"} and store.count("ann") == 6


def test_alignx_names_the_pair_that_is_wrong_and_keeps_the_others(tmp_path: Path) -> None:
    pairs = [{"prompt": "p", "chosen": "c"}, 3, {"prompt": "p", "chosen": "c", "rejected": "r", "more": 1}]
    bad = [row(0, profile=7), row(1, **{HISTORY: pairs}), row(2, profile=""), row(3, **{HISTORY: "x"}), {"prompt": "p"}]
    signals, errors, skipped = found(write(tmp_path, json.dumps(bad)), format="alignx")
    assert [e.field for e in errors] == ["profile", "rejected", HISTORY, HISTORY, HISTORY]
    assert "pair 1: rejected must be text" in errors[1].error
    assert len(signals) == 2 + 2 + 2 + 1 and [s.reason for s in skipped] == ["the profile is empty"]


# oasst ------------------------------------------------------------------------------------------------------


def reply(text: str, rank: int | None = None, *replies: dict[str, Any], role: str = "assistant") -> dict[str, Any]:
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), "deleted": False}


def tree(*replies: dict[str, Any]) -> dict[str, Any]:
    return {"message_tree_id": "t", "tree_state": "ready", "prompt": reply("root", None, *replies, role="prompter")}


def test_oasst_compares_every_two_ranked_replies_and_follows_the_best_path(store: Store, tmp_path: Path) -> None:
    second = reply("more?", None, reply("no", 1), reply("yes", 0), role="prompter")
    value = tree(reply("bad", 2), reply("best", 0, second), reply("fair", 1), reply("unranked"))
    path = write(tmp_path, lines(value))
    report = import_file(store, path)
    assert (report.format, report.added, report.users, report.error_count) == ("oasst", 5, {"oasst"}, 0)
    signals = [s.signal for s in store.signals("oasst")]
    pairs = [(s.prompt, s.chosen, s.rejected) for s in signals if isinstance(s, Comparison)]
    assert pairs == [
        ("root", "best", "fair"), ("root", "best", "bad"), ("root", "fair", "bad"), ("more?", "yes", "no"),
    ]  # fmt: skip
    (path_,) = (s for s in signals if isinstance(s, Conversation))
    assert [(m.role, m.content) for m in path_.messages] == [
        ("user", "root"), ("assistant", "best"), ("user", "more?"), ("assistant", "yes"),
    ]  # fmt: skip


def test_oasst_leaves_out_what_was_deleted_or_ranked_alike_or_has_no_reply(tmp_path: Path) -> None:
    gone = reply("gone", 0) | {"deleted": True}
    values = tree(gone, reply("a", 0), reply("b", 1), reply("c", 1)), tree()
    signals, errors, skipped = found(write(tmp_path, lines(*values)))
    assert not errors and "gone" not in json.dumps([to_json(s) for s in signals])
    assert [s.kind for s in signals] == ["comparison", "comparison", "conversation"]
    assert [s.line for s in skipped] == [1, 2]


@pytest.mark.parametrize("change", [{"text": 3}, {"role": "robot"}, {"rank": "1"}, {"replies": {}}, {"rank": True}])
def test_oasst_refuses_a_tree_with_a_wrong_message_and_names_it(tmp_path: Path, change: dict[str, Any]) -> None:
    bad = tree(reply("a", 0), reply("b", 1, reply("x", None, role="prompter") | change))
    signals, errors, _ = found(write(tmp_path, lines(bad, tree(reply("c", 0)))), format="oasst")
    assert len(signals) == 1 and errors[0].line == 1
    assert errors[0].field == f"prompt.replies[1].replies[0].{next(iter(change))}"


# iterater ---------------------------------------------------------------------------------------------------


def edit(before: str | None, after: str | None, verdict: str = "Accept", who: str = "ann1") -> dict[str, Any]:
    return {"annotator": who, "type": "R", "before": before, "after": after, "accept_or_reject": verdict}


def test_iterater_turns_accepted_edits_into_edits_and_rejected_ones_into_comparisons(tmp_path: Path) -> None:
    rows = edit("a", "b"), edit("c", "d", "Reject", "ann2")
    signals, errors, _ = found(write(tmp_path, lines(*rows)))
    one, two = signals
    assert isinstance(one, Edit) and (one.original, one.edited, one.user) == ("a", "b", "iterater-ann1")
    assert isinstance(two, Comparison) and (two.chosen, two.rejected, two.user) == ("c", "d", "iterater-ann2")
    assert not errors and one.prompt == two.prompt == "Revise this text."


def test_iterater_counts_what_has_only_one_text_and_names_what_is_wrong(store: Store, tmp_path: Path) -> None:
    skips = edit(None, "b"), edit("a", None), edit("a", " "), edit("a", "a")
    rows = *skips, edit("a", "b", "Maybe"), edit("a", "b", who="")
    report = import_file(store, write(tmp_path, lines(*rows, edit("a", "b"), edit("a", "b") | {"after": 3})))
    assert (report.format, report.added, report.error_count) == ("iterater", 1, 3)
    assert sum(report.skipped.values()) == 4 and len(report.skipped) == 3
    assert [e.field for e in report.errors] == ["accept_or_reject", "annotator", "after"]


# auto -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (lines(say("a")), "jsonl"),
        (json.dumps([say("a")]), "jsonl"),
        (json.dumps([row(0)]), "alignx"),
        (lines(row(0)), "alignx"),
        (lines(tree(reply("a", 0))), "oasst"),
        (lines(edit("a", "b")), "iterater"),
        ("broken\n" + lines(edit("a", "b")), "iterater"),
        ("", "jsonl"),
        ("\n\n", "jsonl"),
        ("[]", "jsonl"),
        ("[1, 2]", "jsonl"),
        ("\xff" * 100, "jsonl"),
    ],
)
def test_the_format_is_known_by_the_content(tmp_path: Path, data: str, format: str) -> None:
    assert detect(write(tmp_path, data, "some-file")) == format


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.sampled_from(["auto", "jsonl", "alignx", "oasst", "iterater"]), st.booleans())
def test_no_file_makes_anything_but_signals_and_named_errors(
    tmp_path: Path, data: bytes, format: str, array: bool
) -> None:
    path = write(tmp_path, (b"[" if array else b"") + data)
    if path.read_bytes().startswith(b"\x1f\x8b"):  # gzip is refused as a whole
        return
    for line, item in read(path, format):
        assert line >= 1 and (not isinstance(item, LineError) or item.error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["alignx", "oasst", "iterater"]), st.data())
def test_no_value_in_a_known_field_makes_a_traceback(tmp_path: Path, format: str, data: st.DataObject) -> None:
    value = {"alignx": row(0), "oasst": tree(reply("a", 0), reply("b", 1)), "iterater": edit("a", "b")}[format]
    key = data.draw(st.sampled_from(sorted(value)))
    changed = {**value, key: data.draw(ANY)}
    try:
        path = write(tmp_path, lines(changed))
    except UnicodeEncodeError:
        return
    for _, item in read(path, format):
        assert not isinstance(item, LineError) or "\n" not in item.error
