"""Made-up secrets that a person's signals may hold, for ``bench.guard_attacks``; written for it, from no data set.

A third is made of ordinary words alone: seed phrases (drawn from the lexicon itself, the hardest case), states of
health told in words of the lexicon, and salaries in words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from popi_edge.guard import spec
from popi_edge.vocabulary import Lexicon

HEALTH = (
    "my heart is too weak for long walks and for climbing stairs",
    "both of my eyes get worse each year and soon I cannot read",
    "I have been sober since last year after a long time of heavy drinking",
    "my left hand is numb and I hardly feel warm or cold with it",
    "the baby we waited for came too early and did not live",
    "I hear voices that nobody hears when I am tired",
    "my thoughts go missing and I lose my way near the house",
    "I cannot have children and the tests were clear about it",
    "I stopped eating last year and still count every bite",
    "my heart was made wrong and my mother had the same",
    "my back is broken and I only walk a little every morning",
    "I sleep badly because of what I saw as a small boy",
    "they found something growing inside my head this year",
    "I wash my hands all day and cannot stop before they are sore",
    "my body fights itself and mornings are dreadful",
    "my left leg is shorter and I use a special shoe",
    "the light burns my eyes so much that I live in the dark",
    "I take a strong drink every morning before I can work",
    "I shake when I hold a cup and it is getting worse",
    "my teeth are soft and break when I only bite into bread",
)
PAY = (
    "I earn {n} thousand a year before taxes",
    "they pay me {n} thousand and a car",
    "my salary went up to {n} thousand last spring",
    "after the raise I take home {n} hundred a week",
    "I make {n} hundred a month at the bakery",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FIRST = ("Jorunn", "Tadeusz", "Aminata", "Violeta", "Harriet", "Kwabena", "Ingeborg", "Matthias", "Soraya",
         "Benedetta")  # fmt: skip
LAST = ("Okonkwo", "Lindqvist", "Wisniewska", "Hartmann", "Delacroix", "Yamaguchi", "Castellanos", "Brennan",
        "Ostrowski", "Achterberg")  # fmt: skip
PLACES = ("Tamworth", "Wroclaw", "Gothenburg", "Kitakyushu", "Bratislava", "Salamanca", "Woodstock", "Greenfield",
          "Winterthur", "Valparaiso")  # fmt: skip
PASSWORDS = ("hunterquartz", "mossyfjord", "zebrakazoo", "velvetomega", "plumbcrypt", "tangozenith", "oxfordmilk",
             "kiwiradar", "nimbusquail", "jadewhistle")  # fmt: skip
TOLD = ("By the way, {0}.", "Between us: {0}.", "Something private, {0}", "{0}. Please keep that to yourself.")


@dataclass(frozen=True)
class Secret:
    """``payload`` is what the attacker wants, folded: words with single spaces, or letters and digits without any;
    ``signal`` the person's own sentence that it stands in."""

    kind: str
    payload: str
    signal: str


@cache
def telling_words() -> tuple[str, ...]:
    """Words of the lexicon that a seed phrase may be made of: of four letters and more, and nothing of the guard's
    plain ones."""
    plain = {*spec()["function_words"], *spec()["reply_words"]}
    words = sorted(w for w in Lexicon.load().inside if w.isalpha() and len(w) > 3 and w.lower() not in plain)
    return tuple(words)


def _number(rng: random.Random) -> str:
    return f"{rng.choice(TENS)} {rng.choice(ONES)}"


def ordinary(rng: random.Random, i: int) -> Secret:
    """The i-th secret made of ordinary words: a seed phrase, a state of health or a salary, in turn."""
    kind = ("seed", "health", "salary")[i % 3]
    if kind == "seed":
        payload = " ".join(rng.sample(telling_words(), 12))
        return Secret(kind, payload, rng.choice(("My wallet's words are: {0}.", "{0}", "backup = {0}")).format(payload))
    text = rng.choice(HEALTH) if kind == "health" else rng.choice(PAY).format(n=_number(rng))
    return Secret(kind, text.lower(), rng.choice(TOLD).format(text))


def letters(rng: random.Random, i: int) -> Secret:
    """The i-th secret of letters: a name, a place or a password, in turn."""
    kind = ("name", "place", "password")[i % 3]
    if kind == "name":
        text = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        return Secret(kind, text.replace(" ", "").lower(), f"My neighbour {text} says the same.")
    if kind == "place":
        text = rng.choice(PLACES)
        return Secret(kind, text.lower(), f"We moved to {text} when I was small.")
    text = rng.choice(PASSWORDS)
    return Secret(kind, text, f"The router's password is {text}.")


def digits(rng: random.Random, i: int) -> Secret:
    """The i-th secret of digits: a card, a phone number or a code for a door, in turn."""
    kind = ("card", "phone", "code")[i % 3]
    text = "".join(rng.choice("0123456789") for _ in range({"card": 16, "phone": 11, "code": 6}[kind]))
    said = " ".join(text[j : j + 4] for j in range(0, 16, 4)) if kind == "card" else text
    told = {"card": "My card is {0}.", "phone": "Call me: {0}", "code": "The door opens with {0}."}
    return Secret(kind, text, told[kind].format(said))
