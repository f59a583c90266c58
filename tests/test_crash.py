"""What a ``kill -9`` inside a transaction leaves: all that was acknowledged, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from popi_edge.signals import Statement
from popi_edge.store import Store
from tests.crash_child import Findings, campaign, check


def test_kills_inside_transactions_lose_nothing_acknowledged_and_leave_nothing_half_written(tmp_path: Path) -> None:
    found = campaign(tmp_path, kills=20, seed=1)  # the 200 of a release: python -m tests.crash_child --kills 200
    print(json.dumps(found.points, indent=1))
    assert (found.lost, found.torn) == ([], [])
    assert found.inside == 20 and found.acked > 20
    assert len({point.split(":")[0] for point in found.points}) >= 3, "more than one kind of operation was hit"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log.jsonl").touch()
    return tmp_path


def verdict(folder: Path, *lines: dict[str, Any]) -> Findings:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Findings()
    check(folder, found)
    return found


def test_the_check_sees_a_lost_signal_half_a_batch_and_a_deletion_that_did_not_happen(folder: Path) -> None:
    a, b = Statement("a"), Statement("b")
    with Store.open(folder / "popi.db") as store:
        store.add([a])
    assert verdict(folder, {"intent": {"batches": [[a.id], [b.id]]}}).torn == []
    assert verdict(folder, {"intent": {"batches": [[a.id, b.id]]}}).torn == [f"batch of {a.id}"]
    assert verdict(folder, {"ack": {"added": [a.id, b.id]}}).lost == [f"signal {b.id}"]
    gone = {"delete": [a.id], "terms": ["a"]}
    assert verdict(folder, {"intent": gone}, {"ack": {"deleted": [a.id]}}).lost == [f"deletion of {a.id}"]


def test_the_check_sees_bytes_that_a_deletion_left_behind(folder: Path) -> None:
    with Store.open(folder / "popi.db") as store:
        store.add([Statement("zebra")])
    gone = {"delete": ["some-id"], "terms": ["zebra"]}
    assert verdict(folder, {"intent": gone}).torn == ["bytes of the deleted some-id"]


def test_the_check_sees_summaries_that_were_lost_changed_or_kept_after_their_signals(folder: Path) -> None:
    a = Statement("a")
    with Store.open(folder / "popi.db") as store:
        store.add([a])
        row = store.add_summary(text="t", tokens=1, status="draft", model="m", contract=1, signal_ids=[a.id])
    intent = {"intent": {"summary": "t", "user": "me"}}
    ack = {"ack": {"summary": "t", "user": "me", "version": 1}}
    assert verdict(folder, intent, ack) == Findings()
    assert verdict(folder, ack).torn == [f"summary {row.id}"]
    assert verdict(folder, intent, {"ack": {**ack["ack"], "version": 2}}).lost == ["summary me 2"]
    assert verdict(folder, intent, {"ack": {"approved": row.id}}).lost == [f"approval of {row.id}"]
    assert verdict(folder, intent, {"ack": {"revoked": [row.id]}}).lost == [f"revocation of {row.id}"]
    with Store.open(folder / "popi.db") as store:
        store.conn.execute("DELETE FROM signals")
    assert verdict(folder, intent, ack).torn == [f"summary {row.id}"]


def test_the_check_sees_a_lost_egress_record(folder: Path) -> None:
    assert verdict(folder, {"ack": {"egress": "e", "body": "b"}}).lost == ["egress e"]
