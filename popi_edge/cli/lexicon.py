"""``popi lexicon``: the words that a summary may be made of, and your own among them."""

from __future__ import annotations

import click

from popi_edge.cli.common import App, ask_passphrase, common
from popi_edge.edge import Popi
from popi_edge.vocabulary import Lexicon


@click.group()
def lexicon() -> None:
    """Words that a summary may say. Yours come on top of the ordinary ones, for everybody who uses this data folder."""


@lexicon.command()
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@common
def add(app: App, words: tuple[str, ...]) -> None:
    """Let summaries say a word: a name, a brand, "C++". One word an argument, written as it shall be written."""
    from popi_edge.own_words import as_words

    with Popi.open(home=app.settings.home, passphrase=ask_passphrase) as me:
        added = me.add_words(*words)
        own = me.own_words()
    known = [w for w in as_words(words) if w not in added]
    lines = [f"added {', '.join(added)}"] if added else []
    lines += [f"in the lexicon already: {', '.join(known)}"] if known else []
    app.emit({"added": added, "known": known, "own": own}, "\n".join(lines))


@lexicon.command()
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@common
def remove(app: App, words: tuple[str, ...]) -> None:
    """Take a word of yours out again. A summary that says it is blocked from then on."""
    with Popi.open(home=app.settings.home, passphrase=ask_passphrase) as me:
        gone = me.remove_words(*words)
        own = me.own_words()
    app.emit({"removed": gone, "own": own}, f"removed {', '.join(gone)}")


@lexicon.command("list")
@click.option("--has", multiple=True, metavar="WORD", help="Say instead whether a word may be said (repeatable).")
@common
def list_(app: App, has: tuple[str, ...]) -> None:
    """Your own words; with --has, whether a word is in the lexicon."""
    from popi_edge import own_words

    own = own_words.read(app.settings.home)
    if not has:
        app.emit({"own": own}, "\n".join(own) or "you added no word; the ordinary ones are there without you")
        return
    lexicon, delicate = Lexicon.load(own), Lexicon.load(own, sensitive=True)
    found = {word: _standing(word, lexicon, delicate) for word in own_words.as_words(has)}
    app.emit({"own": own, "has": found}, "\n".join(f"{word}: {what}" for word, what in found.items()))


def _standing(word: str, lexicon: Lexicon, delicate: Lexicon) -> str:
    """yours, ordinary, left out (a delicate word) or no; in whatever case, as the guard looks words up."""
    if word.casefold() in {w.casefold() for w in lexicon.own}:
        return "yours"
    if word in lexicon:
        return "ordinary"
    return "left out, as delicate" if word in delicate else "no"
