"""The privacy report tells what is there, names what is missing, and its control finds what is let out on purpose."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import privacy, privacy_measured, privacy_network, privacy_pupa, privacy_tells
from bench.privacy_units import units
from popi_edge import prompts
from popi_edge.doctor.watch import tools
from popi_edge.errors import ConfigError

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
ROW = {"frames": 9, "not_tcp": 0, "bytes": 10, "streams": 2, "whole": True, "requests": 2, "logged": 2, "equal": True,
       "dropped": 0, "searched": 1000, "found": [], "seconds": 1}  # fmt: skip
CONTROL = {"planted": 14, "missed": [], "extra_body_seen": True, "row": ROW, "seconds": 1}
PERSON = ROW | {"canaries": 34, "stored": 33, "status": "draft", "codes": [0, 0, 0, 0, 1, 1]}


def network(**changes: Any) -> dict[str, Any]:
    crash, doctor = ROW | {"dumped": True}, ROW | {"code": 0}
    rows = {"control": CONTROL, "person 0": PERSON | changes, "crash after 1 people": crash,
            "doctor after 1 people": doctor}  # fmt: skip
    done = privacy_network.summed(rows, 1, 90)
    return {"command": "c", "commit": "abc", "machine": "m"} | done


def test_what_is_let_out_on_purpose_is_found_everywhere(base: Path, tmp_path: Path) -> None:
    done = privacy_network.measure(0, work=tmp_path)
    if not tools()[0]:  # then nothing may be claimed
        assert set(done) == {"not_run"} and not list(tmp_path.iterdir())
        return
    assert done["control"] == {"planted": 14, "missed": [], "extra_body_seen": True}
    assert not done["bodies_equal"]  # nobody's: nothing was shown
    journal = (tmp_path / "journal" / "units.jsonl").read_bytes()
    assert privacy_network.measure(0, work=tmp_path) == done
    assert (tmp_path / "journal" / "units.jsonl").read_bytes() == journal  # the second run had nothing left to do


def test_a_canary_that_leaves_and_bodies_that_differ_are_said_plainly() -> None:
    good = "\n".join(privacy.network(network()))
    assert "canaries found: 0 of 34" in good and "**equal**" in good and "for 1 people the two" in good
    found = network(found=[("capture", "0:profile.text", "base64")], equal=False, codes=[0, 1, 0, 0, 1, 0])
    found["found"] += [f | {"during": "doctor"} for f in found["found"]]
    bad = "\n".join(privacy.network(found))
    assert bad.count("in capture") == 1
    assert "canaries found: 1 of 34" in bad and "0:profile.text in capture (base64), during person 0" in bad
    assert "**NOT EQUAL**" in bad and "failed: 1 of 6" in bad and "for 0 people" in bad
    for part in ("whole", "equal"):
        assert network(**{part: False})["bodies_equal"] is False


def test_without_namespaces_the_section_is_not_run_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_network, "tools", lambda: ([], []))
    done = privacy_network.measure(3)
    assert "no network namespaces" in done["not_run"] and "**Not run**" in privacy.network(done)[0]


STOPPED = """
import signal, sys
from bench import privacy, privacy_pupa
def measure(*_):
    print("ready", flush=True)
    signal.pause()
privacy_pupa.measure = measure
sys.argv = ["privacy", "--section", "pupa", "--work", sys.argv[1], "--measured", sys.argv[1], "--out", sys.argv[2]]
sys.exit(privacy.main())
"""


def test_an_interrupt_is_one_line_that_says_where_what_is_done_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "work"), str(tmp_path / "out.md")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == f"bench.privacy: stopped; what is done is kept in {tmp_path / 'work'}\n"
    assert not (tmp_path / "out.md").exists()


# PUPA -------------------------------------------------------------------------------------------------------
def judged(mine: str, locked: str, text: str, found: str, forced: str, forced_found: str) -> dict[str, Any]:
    return {
        "units": mine.split(), "unwritable": locked.split(), "in_signal": mine.split(), "in_prompt": [],
        "produced": {"text": text, "reason": "" if text else "too few", "found": found.split()},
        "forced": {"text": forced, "given": not text, "found": forced_found.split()},
    }  # fmt: skip


def test_shares_are_of_the_units_of_rows_with_a_summary() -> None:
    rows = [judged("anna roses", "anna", "Likes roses.", "roses", "Likes roses.", "roses"),
            judged("bob carl", "bob carl", "", "", "Says bob.", "bob")]  # fmt: skip
    done = privacy_pupa.summed(rows, [judged("anna roses bob carl", "anna bob carl", "Likes roses.", "roses", "", "")])
    assert (done["together"]["people"], done["together"]["summaries"], done["together"]["share"]) == (1, 1, 0.25)
    assert done["units"] == 4 and done["unwritable_share"] == 0.75 and done["writable"] == ["roses"]
    assert (done["produced"]["summaries"], done["produced"]["share"]) == (1, 0.5)
    assert (done["forced"]["summaries"], done["forced"]["share"]) == (2, 0.5)
    assert done["produced"]["unwritable_found"] == [] and done["forced"]["unwritable_found"] == ["bob"]
    assert done["forced"]["first_word_given"] == 1 and done["why_not_produced"] == {"too few": 1}
    assert (done["in_signal_share"], done["in_prompt_share"]) == (1.0, 0.0)
    none = privacy_pupa.summed([judged("anna", "anna", "", "", "", "")], [])
    assert none["produced"]["share"] is None
    page = {"command": "c", "commit": "a", "machine": "m", "sha256": "0" * 64, "model": "x", "of_rows": 237}
    assert "none to count" in "\n".join(privacy.pupa(page | none))


def test_a_file_that_is_not_pupas_is_refused_in_one_line_and_a_missing_one_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for content in (b"", b"a,b\n1,2\n", b"user_query,target_response,pii_units\nonly\n", b"\xff\xfe,"):
        file.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            privacy_pupa.rows(file)
        assert "a.csv" in str(caught.value) and "\n" not in str(caught.value)
    assert "not_run" in privacy_pupa.measure(tmp_path / "none.csv")


def test_the_switch_that_forces_a_summary_is_off_again_whatever_happens() -> None:
    before = dict(prompts.spec()["evidence"])
    with pytest.raises(RuntimeError), privacy_pupa.no_least_evidence():
        assert prompts.spec()["evidence"]["minimum"] == 0
        raise RuntimeError
    assert prompts.spec()["evidence"] == before and before["minimum"] > 0


@pytest.mark.model
def test_a_row_is_forced_where_the_rules_say_too_little(base: Path, tmp_path: Path) -> None:
    text = "user_query,target_response,pii_units\nPlease write to Zorvak Quim in short words,Dear Zorvak,zorvak||quim\n"
    (tmp_path / "p.csv").write_text(text, "utf-8")
    done = privacy_pupa.measure(tmp_path / "p.csv", work=tmp_path)
    assert units("zorvak||quim") == ["zorvak", "quim"] and done["units"] == 2
    assert done["produced"]["summaries"] == 0 and done["forced"]["summaries"] == 1
    assert done["unwritable_share"] == 1.0 and done["forced"]["found"] == [] and done["in_prompt_share"] == 1.0
    assert privacy_pupa.measure(tmp_path / "p.csv", work=tmp_path) == done
    (tmp_path / "four.csv").write_text(text + 3 * text.splitlines(keepends=True)[1], "utf-8")
    three = privacy_pupa.measure(tmp_path / "four.csv")["together"]
    assert (three["people"], three["summaries"], three["units"], three["found"]) == (1, 1, 6, [])
    assert "for 1 of 1" in "\n".join(privacy.people(three)) and privacy.people(None) == []


# figures that other commands made -----------------------------------------------------------------------------
def test_committed_figures_are_read_and_missing_or_foreign_ones_are_named(tmp_path: Path) -> None:
    found = privacy_measured.measure(MEASURED)
    for f in privacy_measured.FIGURES:
        assert ("lines" in found[f.title]) == (MEASURED / f.file).is_file(), f.title
    attacks = json.loads((MEASURED / "guard_attacks.json").read_text("utf-8"))
    assert f"**past the guard: {attacks['carried']['on']}**" in "\n".join(privacy_measured.render(found))
    (tmp_path / "guard_attacks.json").write_text("[]")
    empty = privacy_measured.measure(tmp_path)
    page = "\n".join(privacy_measured.render(empty))
    assert page.count("**Missing**") == len(privacy_measured.FIGURES)
    assert "guard_attacks.json cannot be read" in page and "to be made by: python -m bench.bundles --count 300" in page


def test_the_page_is_made_from_what_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    out = tmp_path / "report.md"
    words = ["privacy", "--section", "measured", "--measured", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    assert privacy.main() == 0
    assert out.read_text("utf-8").count("**Not run**") == 2
    (tmp_path / "privacy_network.json").write_text(json.dumps(network()), "utf-8")
    assert privacy.main() == 0
    assert "canaries found: 0 of 34" in out.read_text("utf-8")
    bad = tmp_path / "bad.csv"
    bad.write_text("nothing\n")
    monkeypatch.setattr(sys, "argv", [*words[:2], "pupa", *words[3:], "--pupa", str(bad)])
    kept = out.read_text("utf-8")
    assert privacy.main() == 1 and out.read_text("utf-8") == kept
    assert capsys.readouterr().err.splitlines()[-1].startswith("bench.privacy: ")


def test_lines_on_what_a_summary_tells_say_what_was_found_and_whether_it_is_clear() -> None:
    def rate(value: float) -> dict[str, float]:
        return {"accuracy": value, "low": value - 0.1, "high": value + 0.1}

    def found(extra: float, clear: bool) -> dict[str, Any]:
        more = {"difference": extra, "low": extra - 0.05, "high": extra + 0.05, "clear": clear}
        one = {"attack": rate(0.25 + extra), "guess": rate(0.25), "extra": more}
        return dict.fromkeys(("age", "job", "place", "health", "all"), one)

    told = {"people": 20, "people_open": 10, "open_differs": 3, "closed": found(0.01, False), "open": found(0.2, True),
            "closed_same_people": found(0.0, False), "raw": found(0.6, True), "told": found(0.7, True)}  # fmt: skip
    page = "\n".join(privacy_tells.attributes({"told": {"model": "m"}, "attributes": told}))
    assert "closed vocabulary, over the four: 26.0% (16.0–36.0), the guess 25.0% (15.0–35.0): **+1.0 points" in page
    assert "**+20.0 points (+15.0 to +25.0), clear**; closed on the same" in page and page.count(", clear") == 3
    assert "control, the same attacker on the raw signals: 85.0%" in page and "3 of 10 summaries differ" in page
