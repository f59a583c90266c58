"""The report says what the files say, shows every text as text, loads nothing, and overwrites nothing unasked."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from popi_edge.errors import PopiError
from popi_training import report, report_plots
from popi_training.cli_report import report as command
from popi_training.report_sources import Line, Listed, read, read_listing

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
RECIPE = Path(__file__).parent.parent / "training" / "recipes" / "warm-start.toml"
VOID = {"meta", "link", "img", "source", "br"}
KEYS = ("accuracy", "low", "high", "contrast", "contrast_low", "contrast_high", "tokens")


class Page(HTMLParser):
    """A page's elements and the rows of its tables, by caption; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.caption = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"
        if tag == "table":
            self.tables.setdefault(self.caption.strip(), self.rows)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "caption" in self.open:
            self.caption += data
        elif self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def table(self, beginning: str) -> list[list[str]]:
        """The rows of the table whose caption begins so, with spaces as one, without the head."""
        found = [rows for caption, rows in self.tables.items() if caption.startswith(beginning)]
        assert len(found) == 1, f"{beginning!r}: {list(self.tables)}"
        return [[" ".join(cell.split()) for cell in row] for row in found[0][1:]]


def lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def entry(accuracy: float, tokens: float, contrast: float = 0.5) -> dict[str, float]:
    shares = [v for share in (accuracy, contrast) for v in (share, max(0, share - 0.1), min(1, share + 0.1))]
    return dict(zip(KEYS, (*shares, tokens), strict=True))


def a_run(folder: Path, *, name: str = "small", steps: int = 3) -> Path:
    folder.mkdir(parents=True)
    recipe = f'name = {json.dumps(name)}\n[train]\nsteps = 9\n[joint]\nschedule = "frozen"\n'
    (folder / "recipe.toml").write_text(recipe, "utf-8")
    (folder / "run.json").write_text(json.dumps({"name": name, "base": "ab" * 32}), "utf-8")
    lines(folder / "metrics.jsonl", [{"step": s, "loss": 1 / s, "seconds": 20.5} for s in range(1, steps + 1)])
    return folder


def an_evaluation(folder: Path, listing: list[dict[str, Any]] | None, accuracy: float = 0.5) -> Path:
    folder.mkdir(parents=True)
    pairs = len(listing or [])
    conditions = {"none": entry(0.5, 0), "summary": entry(accuracy, 20, 0.6), "oracle_summary": entry(0.9, 25, 0.9)}
    result = {"conditions": conditions, "pairs": pairs, "prompts": pairs}
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    if listing is not None:
        lines(folder / "summaries.jsonl", listing)
    return folder


def listed(row: str, own: float, other: float, text: str = "Likes tea.", **more: Any) -> dict[str, Any]:
    margins = {"summary": [own, other], "oracle_summary": [1.0, -1.0]}
    return {"row": row, "persona": "one", "profile": False, "status": "draft", "tokens": 4, "text": text,
            "margins": margins} | more  # fmt: skip


def called(*words: object) -> Result:
    return CliRunner().invoke(command, [str(w) for w in words])


def refused(*words: object) -> str:
    found = called(*words)
    assert isinstance(found.exception, PopiError), found.output
    return str(found.exception)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the committed metrics and evaluation, and its report."""
    run = tmp_path_factory.mktemp("real") / "warm"
    evaluation = run / "eval" / "held-out prompts"
    evaluation.mkdir(parents=True)
    shutil.copy(RECIPE, run / "recipe.toml")
    shutil.copy(MEASURED / "warm_start_gpu_metrics.jsonl", run / "metrics.jsonl")
    shutil.copy(MEASURED / "warm_prompts.json", evaluation / "result.json")
    shutil.copy(MEASURED / "warm_prompts.jsonl", evaluation / "summaries.jsonl")
    (run / "run.json").write_text('{"name": "popi-smol-warm", "corpus": "c0ffee"}')
    found = called(run, "--json")
    assert found.exit_code == 0, found.output
    return run


@pytest.fixture(scope="module")
def page(real: Path) -> Page:
    return Page((real / "report" / "index.html").read_text("utf-8"))


def test_every_table_shows_the_numbers_of_the_result(page: Page) -> None:
    result = json.loads((MEASURED / "warm_prompts.json").read_text("utf-8"))
    tables = {"All rows: 240 pairs": result, "All rows: the shorter reply": result["shorter"]}
    tables |= {f"All rows: {persona}:": t for persona, t in result["by_persona"].items()}
    assert len(tables) == 4
    for caption, table in tables.items():
        rows = {row[0]: row[1:] for row in page.table(caption)}
        wanted = {**table["conditions"], **{f"{n} (baseline)": b for n, b in table["baselines"].items()}}
        assert list(rows) == list(wanted)
        for name, e in wanted.items():
            gap = table["gap_closed"].get(name)
            assert [cell for cell in rows[name] if cell] == [
                f"{e['accuracy']:.3f}", f"{e['low']:.3f} to {e['high']:.3f}", f"{e['contrast']:.3f}",
                f"{e['contrast_low']:.3f} to {e['contrast_high']:.3f}", f"{e['tokens']:.0f}",
                f"{gap['accuracy']:.2f}" if gap else "–", f"{gap['contrast']:.2f}" if gap else "–",
            ]  # fmt: skip
    shown = [(r[0], r[1], r[2], r[-1]) for r in page.table("Differences")]
    assert shown == [
        (f"{t['a']} − {t['b']}", t["metric"], f"{t['difference']:.3f}", "*" if t["clear"] else "")
        for t in result["tests"]
    ]
    assert {mark for *_, mark in shown} == {"", "*"}


def test_the_head_and_the_fields_say_what_the_metrics_say(page: Page) -> None:
    metrics = [json.loads(line) for line in (MEASURED / "warm_start_gpu_metrics.jsonl").read_text().splitlines()]
    seconds = round(sum(m["seconds"] for m in metrics))
    assert f"wall time {seconds // 60} min {seconds % 60} s" in page.text
    assert "1,800 of 1,800 in the recipe" in page.text and f"{sum(m['tokens'] for m in metrics):,}" in page.text
    assert "c0ffee" in page.text and "No summaries from before training were given." in page.text
    fields = {row[0]: row[1:] for row in page.table("Every field")}
    for name in {k for m in metrics for k in m} - {"step"}:
        values = [m[name] for m in metrics if name in m]
        shown = [float(cell.replace(",", "")) for cell in fields[name]]
        assert shown[0] == len(values)
        assert shown[1:5] == pytest.approx([values[0], values[-1], min(values), max(values)], rel=1e-3)
    assert RECIPE.read_text("utf-8").split() == page.text[page.text.index('name = "popi-smol-warm"') :].split()


def test_failures_are_the_rows_that_chose_wrong_or_did_not_beat_the_opposite(page: Page) -> None:
    rows = [json.loads(line) for line in (MEASURED / "warm_prompts.jsonl").read_text("utf-8").splitlines()]
    failed = []
    for r in rows:
        own, other = r["margins"]["summary"]
        if not (own > 0 and own > other):
            failed.append((min(own, own - other), r))
    failed.sort(key=lambda item: item[0])
    assert f"{len(failed)} of 240 rows chose wrong" in page.text and len(failed) > report.SHOWN
    shown = page.table("The worst first.")
    assert [row[1] for row in shown] == [r["text"] for _, r in failed[: report.SHOWN]]
    assert all(row[0].startswith(r["row"]) for row, (_, r) in zip(shown, failed, strict=False))
    assert [row[3] for row in shown[:5]] == [f"{r['margins']['summary'][0]:.2f}" for _, r in failed[:5]]
    hopeless = sum(r["margins"]["oracle_summary"][0] <= 0 for _, r in failed)
    assert f"In {hopeless} of them the oracle’s sentence chose wrong too" in page.text


@pytest.mark.parametrize(
    ("own", "other", "why"),
    [
        (1.0, 0.5, []),
        (-1.0, -2.0, ["chose the other reply"]),
        (0.0, -1.0, ["undecided"]),
        (1.0, 2.0, ["the opposite’s summary did better"]),
        (1.0, 1.0, ["the opposite’s summary did as well"]),
        (-1.0, 0.0, ["chose the other reply", "the opposite’s summary did better"]),
    ],
)
def test_why_a_row_failed(own: float, other: float, why: list[str]) -> None:
    assert report.shortcomings(own, other) == why


def test_the_page_stands_alone(real: Path, page: Page) -> None:
    text = (real / "report" / "index.html").read_text("utf-8")
    assert {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "form", "base"} == set()
    assert not re.search(r"url\(|@import|@font-face", text)
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "href", "xlink:href", "action", "poster"):
                assert re.match(r"data:(image/png;base64,|,$)|#\w+$", value or ""), f"{tag} {name} {value!r:.60}"
    links = {a["href"] for tag, a in page.elements if tag == "a"}
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids)) and {str(link)[1:] for link in links} <= set(ids)
    head = {a.get("name"): a.get("content") for tag, a in page.elements if tag == "meta"}
    assert "width=device-width" in str(head["viewport"]) and "prefers-color-scheme: dark" in text
    assert str(real) not in text


def test_pictures_have_words_and_the_files_beside_the_page_are_pictures(real: Path, page: Page) -> None:
    from PIL import Image

    alts = [str(a["alt"]) for tag, a in page.elements if tag == "img"]
    assert len(alts) == 9 and all(len(alt) > 20 for alt in alts)
    assert [tag for tag, _ in page.elements].count("source") == 9
    assert any("loss from 4.014 to 0.1823, dev_loss from 0.7964 to 0.2091" in alt for alt in alts)
    for name in ("curves.png", "pareto.png"):
        image = Image.open(io.BytesIO((real / "report" / name).read_bytes())).convert("RGB")
        colours = image.getcolors(image.width * image.height) or []
        assert max(colours)[1] == (255, 255, 255) and len(colours) > 20 and min(image.size) > 300


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}{% raw %}&amp;$\\frac{"


def test_the_parts_of_the_controlled_world_are_not_said_to_be_rows_of_one_another(tmp_path: Path, page: Page) -> None:
    folder = an_evaluation(a_run(tmp_path / "run") / "eval" / "world", None)
    table = json.loads((folder / "result.json").read_text())
    table["conditions"] |= {"bayes": entry(0.95, 0, 0.95)}
    parts = [table | {"part": part, "pairs": pairs} for pairs, part in enumerate(("users", "combinations"), 7)]
    (folder / "result.json").write_text(json.dumps(parts[0] | {"parts": parts}))
    assert called(tmp_path / "run").exit_code == 0
    made = Page((tmp_path / "run" / "report" / "index.html").read_text("utf-8"))
    shown = [caption for caption in made.tables if caption.startswith("Test part")]
    assert [caption.split(" pairs")[0] for caption in shown] == ["Test part users: 7", "Test part combinations: 8"]
    assert "All rows" not in made.text and "intervals draw whole people, and the gap is that from" in made.text
    assert "controlled world" not in page.text


def test_hostile_texts_are_texts(tmp_path: Path, page: Page) -> None:
    run = a_run(tmp_path / "run", name=HOSTILE)
    field = {"step": 1, "loss": 1.0, HOSTILE: 2.0, "_$\\frac{$": 3.0}
    lines(run / "metrics.jsonl", [field, {**field, "step": 2}])
    (run / "run.json").write_text(json.dumps({"name": HOSTILE, HOSTILE: {"a": HOSTILE}}))
    row = listed(HOSTILE, -1, 2, HOSTILE + "\ud800\x00\u202e", persona=HOSTILE, status=HOSTILE)
    folder = an_evaluation(tmp_path / HOSTILE.replace("/", ""), [row], 0.0)
    result = json.loads((folder / "result.json").read_text())
    result["conditions"][HOSTILE] = entry(0.4, 3)
    result["by_persona"] = {HOSTILE: {k: result[k] for k in ("conditions", "pairs", "prompts")}}
    result |= {"model": HOSTILE, "statuses": {HOSTILE: 1}, "dropped": {HOSTILE: 2}}
    result["tests"] = [{"a": HOSTILE, "b": HOSTILE, "metric": HOSTILE, "difference": 0, "low": None, "high": None,
                        "clear": False}]  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    lines(run / "before.jsonl", [row])
    found = called(run, "--eval", folder)
    assert found.exit_code == 0, found.output
    hostile = Page((run / "report" / "index.html").read_text("utf-8"))
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in page.elements}
    sources = [str(a["src"]) for tag, a in hostile.elements if tag == "img"]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not [name for _, a in hostile.elements for name in a if name.startswith("on")]
    assert hostile.text.count("alert(1)") > 15 and "{{ 7*7 }}" in hostile.text
    assert hostile.table("The worst first.")[0][1].startswith(HOSTILE)


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    found = called(run, "--json")
    assert found.exit_code == 0 and not (run / "report" / "pareto.png").exists()
    said = json.loads(found.stdout)
    assert [Path(f).name for f in said["files"]] == ["curves.png", "index.html"] and said["evaluations"] == []
    assert said["missing"] == ["No evaluation was given.", "No summaries from before training were given."]
    text = Page((run / "report" / "index.html").read_text("utf-8")).text
    assert "No evaluation was given." in text and "1 min 2 s" in text and "3 of 9 in the recipe" in text
    assert "schedule frozen" in text
    assert "failures cannot be told" in text


def test_evaluations_of_one_name_in_folders_of_one_name_stay_apart(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    two = [an_evaluation(tmp_path / x / "eval" / "finish", [listed("a", 1, -1)], a) for x, a in (("A", 1), ("B", 0))]
    found = called(run, "--eval", two[0], "--eval", two[1], "--json")
    assert json.loads(found.stdout)["evaluations"] == ["A/eval/finish", "B/eval/finish"]
    page = Page((run / "report" / "index.html").read_text("utf-8"))
    drawn = [a["src"] for tag, a in page.elements if tag == "img" and "ccuracy" in str(a["alt"])]
    assert len(drawn) == 2 and drawn[0] != drawn[1]


def test_what_else_is_missing_or_odd_is_said(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": NaN, "note": "x", "flag": true}\n{"step": 5, "lo')
    (run / "recipe.toml").unlink()
    (run / "run.json").unlink()
    folder = an_evaluation(tmp_path / "e", [listed("a", 1, -1)], accuracy=0.25)
    lines(tmp_path / "before.jsonl", [listed("b", 1, 0)])
    said = report.missing(read(run, [folder, an_evaluation(tmp_path / "f", None)], tmp_path / "before.jsonl"))
    assert said == [
        "There is no recipe.toml in the run’s folder.",
        "There is no run.json in the run’s folder, so what it was made from is not known.",
        "The last line of the metrics was cut off; it is left out.",
        "loss: not a finite number at 1 of its steps, first at step 4; not drawn there.",
        "e: summaries.jsonl does not belong to result.json: accuracy 1.000 against 0.250.",
        "f: there is no summaries.jsonl, so neither summaries nor failures can be shown.",
        "None of the 1 rows from before training is among those listed after it.",
    ]


@pytest.mark.parametrize("bad", ['{"step": 2, "lo', "[1]", '{"loss": 1}', '{"step": "2"}', "", "[" * 100_000])
def test_a_broken_line_of_metrics_is_named_and_nothing_is_written(tmp_path: Path, bad: str) -> None:
    run = a_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1}\n' + bad + '\n{"step": 3}\n')
    assert refused(run).endswith("metrics.jsonl, line 2: not a line of metrics")
    assert not (run / "report").exists()


NOTHING: dict[str, Any] = {"conditions": {}, "pairs": 0, "prompts": 0}
ROW = {"row": "a", "status": "draft", "tokens": 1, "text": "Likes tea."}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("eval/e/result.json", "{", "not JSON"),
        ("eval/e/result.json", '{"conditions": {"none": {"accuracy": "high"}}}', "not a result of popi eval"),
        ("eval/e/result.json", '{"conditions": [1], "pairs": 1, "prompts": 1}', "not a result of popi eval"),
        ("eval/e/result.json", json.dumps({"conditions": {"a": entry(float("nan"), 1)}, "pairs": 1}), "not a result"),
        ("eval/e/result.json", json.dumps({"conditions": {"a": entry(0.5, 10**400)}, "pairs": 1}), "not a result"),
        ("eval/e/result.json", json.dumps({"conditions": {"a": entry(1e299, 1)}, "pairs": 1}), "1e+299 is not a share"),
        ("eval/e/result.json", json.dumps({"conditions": {"a": entry(0.5, 1, -0.1)}}), "-0.1 is not a share"),
        ("eval/e/result.json", json.dumps(NOTHING | {"summary_tokens": 10**400}), "not a result of popi eval"),
        ("eval/e/summaries.jsonl", json.dumps(ROW | {"tokens": 10**400}), "line 1: not a line of summaries"),
        ("eval/e/summaries.jsonl", '{"row": "a"}\n', "line 1: not a line of summaries"),
        ("before.jsonl", '{"row": 1, "status": "", "text": "", "tokens": 1}\n', "line 1: not a line of summaries"),
        ("recipe.toml", "a = ", "not TOML"),
        ("recipe.toml", "a = " + "[" * 3000 + "]" * 3000, "not TOML"),
        ("recipe.toml", "a = " + "9" * 5001, "not TOML"),
        ("recipe.toml", "name = 0x" + "f" * 5001, "not TOML"),
        ("run.json", "[]", "not a JSON object"),
    ],
)
def test_a_file_of_another_shape_is_one_clear_line(tmp_path: Path, name: str, text: str, why: str) -> None:
    run = a_run(tmp_path / "run")
    an_evaluation(run / "eval" / "e", [listed("a", 1, -1)], 1.0)
    (run / name).write_text(text)
    said = refused(run)
    assert why in said and str(run / name) in said and not (run / "report").exists()


def test_what_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    assert "is not a run" in refused(tmp_path)
    run = a_run(tmp_path / "run")
    assert "holds no evaluation" in refused(run, "--eval", tmp_path)
    assert "cannot read" in refused(run, "--before", tmp_path / "none")
    (run / "link").symlink_to("nowhere")
    for name in ("run.json", "link"):
        assert f"cannot write to {run / name}: it is no folder" in refused(run, "--out", run / name)


def test_a_link_to_itself_holds_no_evaluation(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    assert "circle holds no evaluation" in refused(a_run(tmp_path / "run"), "--eval", tmp_path / "circle")


def test_an_earlier_report_is_replaced_only_by_force_and_other_files_never(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "out"
    folder = an_evaluation(tmp_path / "e", [listed("a", 1, -1)], 1.0)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert called(run, "--out", out, "--eval", folder).exit_code == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == {"index.html", "curves.png", "pareto.png", "mine.txt"}
    assert "--force" in refused(run, "--out", out, "--eval", folder)
    assert called(run, "--out", out, "--eval", folder, "--force").exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first, "the same bytes from the same files"
    assert called(run, "--out", out, "--force").exit_code == 0
    assert {path.name for path in out.iterdir()} == {"index.html", "curves.png", "mine.txt"}, "no plot of before stays"
    (out / "index.html").write_text("<p>my own page")
    assert "was not made by popi report" in refused(run, "--out", out, "--force")
    assert (out / "index.html").read_text() == "<p>my own page"


def test_before_and_after_stand_beside_each_other_by_row(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    after = [listed(r, own, 0.5, f"After {r}.") for r, own in (("a", 1), ("b", 2), ("c", -3), ("d", 4))]
    an_evaluation(run / "eval" / "e", after, 0.75)
    silent = listed("b", 0, 0, "", status="insufficient", tokens=0)
    before = [listed("c", 1, 1, "Same."), silent, listed("a", -1, 2, "Same."), listed("z", 1, 1, "Gone.")]
    lines(run / "before.jsonl", [*before, listed("d", 1, 1, "Somebody else.", persona="other")])
    sources = read(run)
    page = Page(report.page(sources, report.NO_PICTURES, []))
    shown = [(a.split()[0], b.split(".")[0], c.split(".")[0]) for a, b, c in page.table("Each row’s summary")]
    assert shown == [("a", "Same", "After a"), ("b", "nothing said insufficient, 0 tokens; m 0", "After b"),
                     ("c", "Same", "After c")]  # fmt: skip
    assert "Gone" not in page.text and "Somebody else" not in page.text
    counts = {row[0]: row[1:] for row in page.table("The 3 rows")}
    assert counts == {"before": ["2", "1", "4.0", "0.500", "0.333"], "after": ["3", "3", "4.0", "0.667", "0.667"]}


def test_without_matplotlib_the_page_is_there_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "popi_training.report_plots")
    monkeypatch.delattr("popi_training.report_plots", raising=False)
    run = a_run(tmp_path / "run")
    found = called(run)
    assert found.exit_code == 0 and [p.name for p in (run / "report").iterdir()] == ["index.html"]
    for said in (found.stderr, (run / "report" / "index.html").read_text("utf-8")):
        assert "pip install matplotlib" in said


def condition(name: str, tokens: float | None, value: float | None, *, baseline: bool = False) -> Line:
    return Line(name, value, None, None, value, None, None, tokens, None, None, baseline)


def test_the_front_holds_what_nothing_beats() -> None:
    found = [
        condition("raw", 400, 0.8), condition("none", 0, 0.5), condition("summary", 20, 0.7),
        condition("shuffled", 20, 0.6), condition("longer way", 30, 0.7), condition("twin", 20, 0.7),
        condition("oracle_summary", 1, 0.99), condition("bayes", 0, 1.0), condition("bayes_any", 0, 0.9),
        condition("longer", 0, 0.9, baseline=True),
        condition("empty", 5, None),
    ]  # fmt: skip
    for seed in range(5):
        random.Random(seed).shuffle(found)
        names = [line.name for line in report.front(found, "contrast")]
        assert (names[0], set(names[1:3]), names[3:]) == ("none", {"summary", "twin"}, ["raw"])


def test_fields_are_drawn_with_their_kin() -> None:
    fields = ["loss", "dev_loss", "contrast", "dev_contrast", "tokens", "dev_tokens", "length", "lr_infer", "entropy",
              "dev_entropy", "grad_norm_infer", "reward_raw", "dev_kl", "loss_dpo"]  # fmt: skip
    found = {g.title: set(g.fields) for g in report_plots.groups(fields)}
    assert sorted(f for names in found.values() for f in names) == sorted(fields)
    assert found["Loss"] == {"loss", "dev_loss", "loss_dpo"} and found["entropy"] == {"entropy", "dev_entropy"}
    assert found["Contrast term"] == {"contrast"} and found["Right choices"] == {"dev_contrast"}
    assert found["Tokens"] == {"tokens"} and found["Summary length"] == {"length", "dev_tokens"}
    assert found["Learning rate"] == {"lr_infer"} and found["KL"] == {"dev_kl"} and found["Reward"] == {"reward_raw"}


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50])
def test_the_thick_line_is_the_mean_around_each_step(window: int) -> None:
    values = [random.Random(window).uniform(-1, 1) for _ in range(20)]
    half = window // 2
    plain = [values[max(0, i - half) : i + half + 1] for i in range(20)]
    assert report_plots.smooth(values, window) == pytest.approx([sum(v) / len(v) for v in plain])
    assert set(report_plots.smooth([0.1] * 20, window)) == {0.1}, "what does not change is not made to"


def test_many_rows_are_shown_evenly() -> None:
    assert report.spread(list(range(7)), 7) == list(range(7))
    assert report.spread(list(range(1000)), 4) == [0, 250, 500, 750]


def test_a_listing_may_lack_margins(tmp_path: Path) -> None:
    row = listed("a", 1, 1)
    del row["margins"]
    lines(tmp_path / "s.jsonl", [row])
    found = read_listing(tmp_path / "s.jsonl")
    assert found == [Listed("a", "one", False, "draft", 4.0, "Likes tea.", {})] and report.failures(found) == []
