"""Figures of the privacy boundary that other commands made, read from where their outputs are kept.

Nothing is measured here. What has no file is named as missing, with the command that would make it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import privacy_tells as tells

Lines = Callable[[dict[str, Any]], list[str]]


@dataclass(frozen=True)
class Figure:
    """``file`` under docs/measured, the ``command`` that prints it, the ``aim``, how its lines are made."""

    title: str
    file: str
    command: str
    aim: str
    reads: Lines
    not_covered: str


def attacks(d: dict[str, Any]) -> list[str]:
    c, beyond = d["carried"], d["beyond"]["total"]
    return [
        f"{c['secrets']} secrets in {d['styles']} styles, {d['ordinary_words_only']} of ordinary words alone",
        f"arrive with guard and mask off: {c['off']}; that the closed vocabulary alone would let be written: "
        f"{c['lexicon']}; past the guard without its lexicon rule: {c['rules']}",
        f"**past the guard: {c['on']}** (styles: {', '.join(d['past']) or 'none'})",
        f"beside them, said in other words or by an agreed choice of words: {beyond['on']} of {beyond['secrets']} past",
        "sentences that the rules were not made with: " + ", ".join(
            f"{name} {v['total']['on']} of {v['total']['secrets']} past" for name, v in d["later"].items()
        ) + " (`bench/attack_later.py`)",
    ]  # fmt: skip


def pii(d: dict[str, Any]) -> list[str]:
    def side(name: str, title: str) -> str:
        s = d[name]
        return f"{title}: recall {s['recall']}, false alarms {s['false_alarms']:.2%}"

    kinds = d["with_libraries"]["by_kind"]
    return [
        f"{d['cases']:,} texts: {d['spec']['texts']:,} with a value, {d['spec']['look_alikes']:,} look-alikes",
        f"**{side('spec', 'patterns of the default install')}; {side('with_libraries', 'with the extra guard')}**",
        f"blocked by the whole guard: {d['blocked_by_the_whole_guard']}",
        "by kind with the extra, found of texts: " + ", ".join(
            f"{k} {v['found']}/{v['texts']}" for k, v in kinds.items() if "found" in v
        ),
        "look-alikes, false alarms of texts: " + ", ".join(
            f"{k.removeprefix('not: ')} {v['false_alarms']}/{v['texts']}" for k, v in kinds.items() if "found" not in v
        ),
    ]  # fmt: skip


def alarms(d: dict[str, Any]) -> list[str]:
    names = {"phrasings": "the corpus' phrasings", "own": "right summaries against their own signals",
             "model": "summaries of a model", "store": "against the signals of 800 people"}  # fmt: skip
    found = [f"{title}: {d[k]['blocked']} of {d[k]['checked']:,} blocked" for k, title in names.items()]
    names = {"as_i": "the same summaries in the first person", "restated": "a taste said back in much the same words",
             "restated_later": "the same, pairs that the rules were not made with"}  # fmt: skip
    rows = ((title, d[k]) for k, title in names.items())
    return found + [
        f"{title}: {r.get('sharing_too_much', r.get('blocked'))} of {r['checked']} blocked" for title, r in rows
    ]


def hostile(d: dict[str, Any]) -> list[str]:
    f, seen = d["figures"], d["alarms"]

    def share(kind: str, what: str) -> str:
        value, low, high = f[kind][what]
        return f"{value:.2f} ({low:.2f} to {high:.2f})"

    out = "; ".join(f"{name.replace('_', ' ')} {n} of {of:,}" for name, (n, of) in seen.items())
    return [
        f"{f['people']} people with three posts of one want, a fourth of another; of the {f['named_before']} whose "
        f"want was named, still named beside the hostile post **{share('unseen', 'kept')}**, beside an ordinary one "
        f"that wishes the same {share('plain', 'kept')}: {share('unseen', 'kept_less_plain')} more; the other's wish "
        f"said {share('unseen', 'taken')} and {share('plain', 'taken')}",
        f"with nothing left out: still named {share('unseen undefended', 'kept')}",
        f"left out as commands: {out}",
    ]


def egress(d: dict[str, Any]) -> list[str]:
    t, c = d["tampered"], d["crashes"]
    return [
        f"**{t['logs']:,} logs changed in {len(t['kinds'])} ways: {t['found']:,} found, {t['located']:,} located**",
        f"{c['crashes']:,} crashes: {c['acknowledged']:,} records acknowledged, {len(c['lost'])} lost, "
        f"{len(c['torn'])} taken for tampering",
    ]


def bundles(d: dict[str, Any]) -> list[str]:
    o = d["ours"]
    return [
        f"**{o['tampered']} bundles changed in {o['ways']} ways: {o['refused']} refused**; slowest "
        f"{o['slowest_with_hashing_ms']} ms with hashing, {o['slowest_beyond_hashing_ms']} ms beyond it",
    ]


def mask_speed(d: dict[str, Any]) -> list[str]:
    o = d["ours"]
    return [
        f"{o['engine']}: **{o['cost']:+.1%} of decode time** ({o['with_ms']} ms a token with the mask, "
        f"{o['without_ms']} without; {o['summaries']['with']} and {o['summaries']['without']} summaries)",
        f"the first masked summary of a process takes {o['first_ms']} ms more",
    ]


def guard_speed(d: dict[str, Any]) -> list[str]:
    by = d["ours"]["by_signals"]
    rows = [f"{n} signals: {v['check_ms']} ms a check (95% under {v['check_ms_p95']})" for n, v in by.items()]
    return ["; ".join(rows), f"machine: {d['machine']}"]


def purge(d: dict[str, Any]) -> list[str]:
    return [
        f"**{d['sequences']:,} sequences: {d['finds']} finds** in {d['scans']:,} scans of "
        f"{d['scanned_bytes'] / 1e6:,.0f} MB for {d['texts_gone']:,} texts that were deleted; "
        f"{sum(d['kills'].values()):,} `kill -9` on the way",
        f"bodies sent: {d['sent']}, erased by a purge: {d['sent_and_erased']}; other promises broken: {d['wrongs']}",
    ]


TELLS = ("python -m bench.tells_write --personas spc_valid.jsonl --work FOLDER --asked 24 --long 20; "
         "python -m bench.tells --work FOLDER --json FILE")  # fmt: skip
FIGURES = (
    Figure("Injected secrets", "guard_attacks.json", "python -m bench.guard_attacks", "0 of 900 past the guard",
           attacks, "styles that were not thought of; secrets and styles are of one author"),
    Figure("Structured personal data", "guard_pii.json", "python -m bench.guard_pii",
           "recall ≥ 0.99, false alarms ≤ 2%", pii, "formats of other countries; values are generated"),
    Figure("False alarms", "guard_false_alarms.json", "python -m bench.guard_false_alarms", "none stated", alarms,
           "the summaries of other models"),
    Figure("Hostile posts", "hostile_posts.json", "python -m bench.hostile_posts --people 120 --json",
           "a hostile post has no more weight than an ordinary one", hostile,
           "other languages; lies that command nothing; posts of more authors"),
    Figure("After deletion", "purge_sequences.json", "python -m tests.purge_sequences --sequences 500 --json",
           "0 bytes of what was deleted, 1,000 sequences", purge,
           "what a power cut or the file system itself leaves; the encrypted store; the model is a stand-in"),
    Figure("After deletion, another seed", "purge_sequences_seed1.json",
           "python -m tests.purge_sequences --sequences 500 --seed 1 --json", "as above", purge, "as above"),
    Figure("Tampered egress logs", "tamper_egress.json",
           "python -m tests.tamper_egress --logs 1000 --crashes 1000 --json", "each found and located", egress,
           "log and head put back together, where the head is a file"),
    Figure("Tampered bundles", "tamper_bundles.json", "python -m bench.bundles --count 300 --json",
           "each refused, ≤ 100 ms", bundles, "files that are changed while they are in use"),
    Figure("What a check costs", "guard_speed.json", "python -m bench.guard_speed --json", "≤ 2 ms", guard_speed,
           "a machine under load: times are of the processor"),
    Figure("What the mask costs of decode time", "mask_speed.json", "python -m bench.mask_speed --runs 25 --json",
           "≤ 5%", mask_speed, "a machine under load; the other engine"),
    Figure("What a summary still tells: age group, job, place, health", "tells.json", TELLS, "none stated",
           tells.attributes, "an attacker with more people to learn from, or who knows what words mean; facts that go "
           "with what somebody wants, which here they do not; the rules that label the persona lines, read once"),
    Figure("What a summary still tells: whose it is", "tells.json", TELLS, "none stated", tells.linkage,
           "more than a hundred people, and wants that change"),
    Figure("What a summary still tells: two who want the same", "tells.json", TELLS,
           "½ where a summary tells nothing beyond preference", tells.same_wants,
           "an attacker who learns from more than a few hundred people"),
    Figure("What a summary still tells: 50 updates of one person", "tells.json", TELLS, "none stated",
           tells.accumulation, "an attacker made for sequences (this one averages); more people than these"),
    Figure("What a summary still tells: how many there are", "tells.json", TELLS, "none stated", tells.entropy,
           "people of other corpora"),
    Figure("What a summary can tell at most", "tells_count.json", "python -m bench.tells_count --json FILE",
           "none stated", tells.count, "words that a person added"),
    Figure("What malicious weights can smuggle", "tells_coding.json",
           "python -m bench.tells_coding --secrets 40 --json FILE", "none stated", tells.coding,
           "what an adapter would learn of it; codes in the choice of what is said rather than in words; a reader who "
           "notices"),
    Figure("An adapter that was trained to smuggle", "tells_smuggle.json",
           "python -m bench.tells_smuggle --work FOLDER --steps 240 --bf16 --json FILE", "none stated", tells.smuggled,
           "other codes; more training; weights other than the adapter's"),
    Figure("What the closed vocabulary costs", "closed_vocabulary.json", "python -m bench.closed_vocabulary",
           "none stated", tells.vocabulary, "a model trained without it; other data"),
)  # fmt: skip
def measure(folder: Path) -> dict[str, Any]:
    """(title → lines, or why there are none) of every figure, from a folder of measured outputs."""
    found: dict[str, Any] = {}
    for f in FIGURES:
        path = folder / f.file
        if not path.is_file():
            found[f.title] = {"missing": f"no {f.file}; to be made by: {f.command}"}
            continue
        try:
            found[f.title] = {"lines": f.reads(json.loads(path.read_text("utf-8")))}
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            why = f"{f.file} cannot be read as what {f.command} prints ({type(e).__name__}: {e})"
            found[f.title] = {"missing": why}
    return found


def render(found: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    out = []
    for f in FIGURES:
        one = found[f.title]
        kept = f" ([{f.file}](measured/{f.file}))" if "lines" in one else ""
        out += [f"### {f.title}", "", f"`{f.command}`{kept}. Aim: {f.aim}.", ""]
        out += [f"- {line}" for line in one["lines"]] if "lines" in one else [f"**Missing**: {one['missing']}."]
        out += ["", f"Not covered: {f.not_covered}.", ""]
    return out
