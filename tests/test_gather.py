"""Results of several test sets become one table, and the committed manifest's is that of the committed results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from popi_training.evaluate import gather
from tests.test_shipped_bundle import AS_MEASURED

ROOT = Path(__file__).parent.parent
SETS = {
    "held-out prompts": "eighth_prompts", "held-out phrasings": "eighth_phrasings", "new users": "eighth_users",
    "held-out combinations": "eighth_combinations", "held-out dimensions": "eighth_dimensions",
    "AlignX, developing half": "fifth_alignx_dev", "OneStopEnglish": "fifth_onestopenglish",
}  # fmt: skip
"""Everybody in the last two chose between replies, and for them 0.7.0 writes as 0.5.0 did (``fifth``)."""


def test_the_manifest_and_the_readme_have_the_table_of_the_committed_results() -> None:
    words = [f"{name}={ROOT}/docs/measured/{file}.json" for name, file in SETS.items()]
    table = gather.gathered(dict(map(gather.read, words)))
    manifest = json.loads((ROOT / "popi_edge/models/popi-smol/manifest.json").read_text("utf-8"))
    assert manifest["evaluation"] == json.loads(json.dumps(table))
    assert gather.markdown(table) in (ROOT / "README.md").read_text("utf-8")
    now = f"{manifest['name']} {manifest['version']}"
    for word, file in zip(words, SETS.values(), strict=True):
        assert gather.read(word)[1]["model"] == AS_MEASURED.get(file.partition("_")[0], now)


@pytest.mark.parametrize("text", [
    "{", "[]", '{"conditions": {}}', 10_000 * "[",
    '{"conditions": [], "gap_closed": {}, "model": "m", "engine": "e", "pairs": 1, "seed": 0}',
    '{"conditions": {"raw": {}}, "gap_closed": {}, "model": "m", "engine": "e", "pairs": 1, "seed": 0}',
])  # fmt: skip
def test_a_file_that_is_no_result_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    for file in ("r.json", "nowhere.json"):
        monkeypatch.setattr(sys, "argv", ["gather", str(tmp_path / "out.json"), f"x={tmp_path / file}"])
        with pytest.raises(SystemExit, match=rf"gather: .*{file.replace('.', '[.]')}"):
            gather.main()
    assert not (tmp_path / "out.json").exists()


def test_what_was_left_out_is_a_dash_and_one_prompt_has_no_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = dict.fromkeys(gather.KEPT) | {"accuracy": 1.0, "contrast": 0.5, "tokens": 20.0}
    result = {"conditions": {"summary": one, "oracle_summary": one}, "gap_closed": {}, "model": "m", "engine": "e",
              "pairs": 2, "seed": 0}  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(result))
    words = [f"{name}={tmp_path / 'r.json'}" for name in "ab"]
    monkeypatch.setattr(sys, "argv", ["gather", str(tmp_path / "out.json"), *words])
    gather.main()
    assert "| a (2) | – | – | – | 0.50 | 0.50 | – | 20 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gather", str(tmp_path / "out.json"), words[0], words[0]])
    with pytest.raises(SystemExit, match="gather: two results have one name"):
        gather.main()
