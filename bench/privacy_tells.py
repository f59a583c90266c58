"""Lines of the privacy report on what a summary still tells, from what ``bench.tells`` and its kin printed."""

from __future__ import annotations

from typing import Any

ATTRIBUTES = {"age": "age group", "job": "job", "place": "place", "health": "health"}
ATTACKERS = {"preferences": "by the preferences it names", "words": "by words", "learnt": "by both, learnt"}
WAYS = {
    "whole": "from the first word on, by the model's own distribution",
    "behind": "behind a true first sentence, by the same",
    "uniform": "every token alike, no model",
}


def share(d: dict[str, Any], name: str = "accuracy") -> str:
    """``31.0% (25.1–37.2)``."""
    low, high = ("low", "high") if name == "accuracy" else (f"{name}_low", f"{name}_high")
    between = "" if d[low] is None else f" ({100 * d[low]:.1f}–{100 * d[high]:.1f})"
    return f"{100 * d[name]:.1f}%{between}"


def points(d: dict[str, Any]) -> str:
    """``+1.2 points (−3.0 to +5.1)``, with what is clear marked so."""
    between = "" if d["low"] is None else f" ({100 * d['low']:+.1f} to {100 * d['high']:+.1f})"
    return f"{100 * d['difference']:+.1f} points{between}{', clear' if d['clear'] else ''}"


def number(d: dict[str, Any], digits: int = 1) -> str:
    """A mean with its interval."""
    between = "" if d["mean_low"] is None else f" ({d['mean_low']:.{digits}f} to {d['mean_high']:.{digits}f})"
    return f"{d['mean']:.{digits}f}{between}"


def attributes(d: dict[str, Any]) -> list[str]:
    a = d["attributes"]
    closed, unmasked, same = a["closed"], a["open"], a["closed_same_people"]

    def line(found: dict[str, Any]) -> str:
        return f"{share(found['attack'])}, the guess {share(found['guess'])}: **{points(found['extra'])}**"

    each = "; ".join(
        f"{title} {share(closed[k]['attack'])}, {points(closed[k]['extra'])}" for k, title in ATTRIBUTES.items()
    )
    return [
        f"{a['people']} people of {d['told']['model']}, each with one fact of every kind among the signals, "
        "drawn apart from what they want; the guess is what most people are",
        f"closed vocabulary, over the four: {line(closed['all'])}",
        f"apart: {each}",
        f"open vocabulary, {a['people_open']} of them: {line(unmasked['all'])}; closed on the same: "
        f"{line(same['all'])}; {a['open_differs']} of {a['people_open']} summaries differ at all",
        f"control, the same attacker on the raw signals: {line(a['raw']['all'])}; on summaries with the facts said "
        f"behind them: {line(a['told']['all'])}",
        "beside it: the literature has 1.5 to 3.5% extra leakage at 90 to 96% utility (other data, other attackers)",
    ]  # fmt: skip


def linkage(d: dict[str, Any]) -> list[str]:
    a = d["linkage"]

    def line(found: dict[str, Any]) -> str:
        return ", ".join(
            f"{title} {share(found[k]['first'])}, median rank {found[k]['median_rank']:g}"
            for k, title in ATTACKERS.items()
        )

    return [
        f"right at first, of {a['closed']['of']} (chance 1%, median rank 50.5), {a['closed']['words']['people']} "
        f"summaries: **{line(a['closed'])}**",
        f"open vocabulary, one hundred of them: {line(a['open'])}; closed, the same hundred: "
        f"{line(a['closed_same_people'])}",
    ]  # fmt: skip


def same_wants(d: dict[str, Any]) -> list[str]:
    a = d["same_wants"]
    closed, text = a["closed"], a["same_text"]
    return [
        f"the training report's attacker (½ is chance), on two people who want the same: "
        f"**{share(closed['same_wants'])}** of {closed['same_wants']['pairs']} pairs; on any two: "
        f"{share(closed['all'])}, open vocabulary {share(a['open']['all'])}",
        f"one who has the model and asks it whose signals make the summary likelier, on "
        f"{a['model_signals']['couples']} couples whose summaries differ: **{share(a['model_signals'])}** where he has "
        f"the very signals, **{share(a['model_others'])}** where he has others of the same two people",
        f"{text['same']} of {text['couples']} couples have the same summary, word for word: nobody can tell them apart",
    ]


def accumulation(d: dict[str, Any]) -> list[str]:
    a = d["accumulation"]
    named = {n: f"{v['right']:.1f} right and {v['wrong']:.1f} others" for n, v in a["named"].items()}
    linked = "; ".join(
        f"{title} {share(found['last']['first'])} by the last, {share(found['all']['first'])} by all: "
        f"{points(found['more'])}"
        for k, title in ATTACKERS.items() for found in [a["linkage"][k]]
    )  # fmt: skip
    t = a["attributes"]
    return [
        f"{a['people']} people of four wants, {a['updates']} signals and a summary after each: "
        f"{min(a['different_texts'])} to {max(a['different_texts'])} different texts each; preferences named by the "
        f"last: {named['last']}; by all: {named['all']}",
        f"linkage, right at first among 100: {linked}",
        f"attributes, by an attacker who learnt from single summaries: {share(t['last'])} by the last, "
        f"{share(t['all'])} by all: {points(t['more'])}; the guess {share(t['guess'])}",
    ]  # fmt: skip


def entropy(d: dict[str, Any]) -> list[str]:
    a = d["entropy"]
    return [
        f"{title}: {e['distinct']} different summaries of {e['people']} people, entropy as counted "
        f"**{e['entropy_bits']} bits** (at most {e['most_bits']} with so many people); "
        f"the next person's is a new one with a chance of {e['new_next']:.0%}"
        for title, e in (("closed vocabulary", a["closed"]), ("open", a["open"]))
    ]  # fmt: skip


def count(d: dict[str, Any]) -> list[str]:
    grows = ", ".join(f"{n} tokens {b}" for n, b in d["texts_bits_by_tokens"].items())
    return [
        f"{d['words']:,} words, {d['tokens']} tokens: **{d['texts_bits']} bits** (log2 of the number of texts that can "
        f"be written; of token sequences {d['sequences_bits']})",
        f"by length, in bits: {grows}",
    ]


def coding(d: dict[str, Any]) -> list[str]:
    out = []
    for way, title in WAYS.items():
        w = d["ways"][way]
        out.append(
            f"{title}: **{number(w['bits'])} of {d['bits']} bits arrive, {number(w['bits_past_the_guard'])} with the "
            f"guard on top**; all of them in {w['whole_secrets_past_the_guard']} of {w['texts']} texts; "
            f"{w['tokens_to_carry_them']:g} tokens to carry them ({w['bits_a_token']} bits a token), the text "
            f"{number(w['tokens'])} tokens; log p a token {number(w['log_prob'], 2)}; blocked: {w['blocked']}; "
            f"for one: *{w['examples'][0]}*"
        )
    s = d["ways"]["sampled"]
    return [
        *out,
        f"ordinary samples beside them: {number(s['tokens'])} tokens, log p a token {number(s['log_prob'], 2)}; "
        f"blocked: {s['blocked']}",
        "an upper bound on any adapter that hides a code in words: nothing was trained here",
    ]


def smuggled(d: dict[str, Any]) -> list[str]:
    def way(title: str, w: dict[str, Any]) -> str:
        return (
            f"{title}: **{number(w['bits'])} of 32 bits arrive, {number(w['bits_past_the_guard'])} past the guard**; "
            f"all of them in {w['whole']} and {w['whole_past_the_guard']} of {w['of']} texts; blocked: {w['blocked']}; "
            f"for one: *{w['examples'][0]}*"
        )

    kind = "bfloat16" if d["bf16"] else "float32"
    return [
        f"{d['steps']} steps of {d['batch']} people in {d['seconds'] / 60:.0f} minutes ({kind}), from the shipped "
        f"adapter on",
        way("under the mask", d["ways"]["mask"]), way("without it", d["ways"]["no mask"]),
    ]  # fmt: skip


def vocabulary(d: dict[str, Any]) -> list[str]:
    def side(s: dict[str, Any]) -> str:
        return (
            f"accuracy {share(s)}, contrast {share(s, 'contrast')}, {s['tokens']:.1f} tokens, {s['distinct']} "
            f"different of {s['summaries']}, {s['lawful']} of them by the rules"
        )

    beside = [f"closed: *{b['closed'] or '–'}* open: *{b['open'] or '–'}*" for b in d["beside"]]
    diff = d["difference"]
    return [
        f"{d['pairs']} rows of {d['prompts']} held-out prompts, {d['model']}; with it: {side(d['closed'])}",
        f"without it: {side(d['open'])}",
        f"**without less with: accuracy {points(diff['accuracy'])}, contrast {points(diff['contrast'])}**; "
        f"{d['differ']} summaries differ",
        f"words outside the lexicon in those without it: {', '.join(d['open']['outside'][:40]) or 'none'}",
        *beside,
    ]
