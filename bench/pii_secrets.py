"""Made-up keys, addresses and places, and what looks like personal data and is none; for ``bench.guard_pii``."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import uuid

from bench.pii_values import BBAN, NATIONAL, Make, card, digits, fill, iban, some

NAMES = ("jorunn", "t.wisniewska", "aminata.o", "matthias_h", "kwabena", "v-castellanos", "soraya99", "hello")
DOMAINS = ("example.org", "example.com", "mail.example.net", "beispiel.de", "exemple.fr", "ejemplo.es", "voorbeeld.nl",
           "example.co.uk", "example.com.br", "priklad.cz")  # fmt: skip


def email(rng: random.Random) -> str:
    name, domain = rng.choice(NAMES), rng.choice(DOMAINS)
    return rng.choice((f"{name}@{domain}", f"{name}+shop@{domain}", f"{name} (at) {domain.replace('.', ' dot ')}",
                       f"{name.upper()}@{domain}", f"{name} @ {domain}"))  # fmt: skip


def url(rng: random.Random) -> str:
    domain = rng.choice(DOMAINS)
    return rng.choice((f"https://{domain}/u/{rng.choice(NAMES)}", f"http://{domain}", f"www.{domain}",
                       f"https://www.{domain}/profile?id={digits(5, rng)}", f"{domain}/~{rng.choice(NAMES)}",
                       f"ftp://files.{domain}/home", f"https://192.0.2.{rng.randrange(256)}:8080/"))  # fmt: skip


def ip(rng: random.Random) -> str:
    four = ".".join(str(rng.randrange(1, 255)) for _ in range(4))
    groups = [f"{rng.randrange(1, 65536):x}" for _ in range(8)]
    return rng.choice((four, four, f"{four}:8080", ":".join(groups), f"2001:db8::{groups[0]}", f"fe80::{groups[0]}:1"))


def mac(rng: random.Random) -> str:
    return rng.choice(":-").join(fill("&&", rng) for _ in range(6)).upper()


def coordinates(rng: random.Random) -> str:
    lat, lon = rng.uniform(-85, 85), rng.uniform(-179, 179)
    ns, ew = "NS"[lat < 0], "EW"[lon < 0]
    a, b = abs(lat), abs(lon)
    d = f"{int(a)}°{int(a * 60) % 60:02d}'{int(a * 3600) % 60:02d}\"{ns}"
    return rng.choice((f"{lat:.5f}, {lon:.5f}", f"{a:.4f}° {ns}, {b:.4f}° {ew}", f"{lat:.6f},{lon:.6f}",
                       f"{d} {int(b)}°{int(b * 60) % 60:02d}'{int(b * 3600) % 60:02d}\"{ew}",
                       f"geo:{lat:.4f},{lon:.4f}", f"{a:.5f}{ns} {b:.5f}{ew}"))  # fmt: skip


def _b64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def jwt(rng: random.Random) -> str:
    head = json.dumps({"alg": "HS256", "typ": "JWT"}, separators=(",", ":"))
    body = json.dumps({"sub": digits(10, rng), "name": rng.choice(NAMES), "iat": 1_700_000_000 + rng.randrange(10**7)})
    return f"{_b64(head)}.{_b64(body)}.{fill('*' * 43, rng)}"


def pem(rng: random.Random) -> str:
    kind = rng.choice(("RSA ", "EC ", "OPENSSH ", ""))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{fill('*' * 64, rng)}\n-----END {kind}PRIVATE KEY-----"


TOKENS = (
    "AKIA" + "@#" * 8, "ghp_" + "*" * 36, "gho_" + "*" * 36, "github_pat_" + "*" * 22 + "_" + "*" * 59,
    "glpat-" + "*" * 20, "xoxb-############-############-" + "*" * 24, "sk_live_" + "*" * 24, "rk_live_" + "*" * 24,
    "sk-" + "*" * 48, "sk-proj-" + "*" * 40, "sk-ant-api03-" + "*" * 60, "AIza" + "*" * 35,
    "SG." + "*" * 22 + "." + "*" * 43, "npm_" + "*" * 36, "pypi-AgEIcHlwaS5vcmc" + "*" * 60, "hf_" + "*" * 34,
    "key-" + "&" * 32, "AC" + "&" * 32, "##########:AA" + "*" * 33, "dop_v1_" + "&" * 64, "shpat_" + "&" * 32,
)  # fmt: skip
TOLD = ("password: {0}", "pw = {0}", "api_key={0}", "My Wi-Fi password is {0}", "token: {0}", "secret={0}",
        "das Passwort lautet {0}", "mot de passe : {0}", "contraseña: {0}")  # fmt: skip


def key(rng: random.Random) -> str:
    """A service's key by its own shape, a private key, or a password that is told as one."""
    kind = rng.random()
    if kind < 0.1:
        return pem(rng)
    if kind < 0.35:
        word = rng.choice(("Mossy", "Tango", "kiwi", "Velvet", "quartz")) + rng.choice("!_-#") + fill("##*#**", rng)
        return rng.choice(TOLD).format(word)
    if kind < 0.45:
        return f"postgres://{rng.choice(NAMES)}:{fill('*' * 12, rng)}@db.example.org:5432/main"
    return fill(rng.choice(TOKENS), rng)


def wallet(rng: random.Random) -> str:
    b58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    return rng.choice(("0x" + fill("&" * 40, rng), "bc1q" + "".join(rng.choice("qpzry9x8gf2tvdw0s3jn54khce6mua7l")
                       for _ in range(38)), bitcoin(rng, b58)))  # fmt: skip


def bitcoin(rng: random.Random, b58: str) -> str:
    """An old-style address: a version byte, 20 bytes and four of a double SHA-256, in base 58."""
    body = b"\0" + rng.randbytes(20)
    number = int.from_bytes(body + hashlib.sha256(hashlib.sha256(body).digest()).digest()[:4], "big")
    out = ""
    while number:
        number, rest = divmod(number, 58)
        out = b58[rest] + out
    return "1" + out


SAID: dict[str, tuple[Make, *tuple[str, ...]]] = {
    "email": (email, "Write to {0}.", "{0} is my address", "Reply to {0}, please", "Meine Adresse: {0}"),
    "url": (url, "See {0} for more.", "My page is {0}", "Mehr unter {0}"),
    "ip": (ip, "The server is at {0}.", "I log in from {0}", "ping {0}"),
    "mac": (mac, "The printer has {0}.", "MAC {0}"),
    "coordinates": (coordinates, "We live at {0}.", "Meet me at {0}", "Position {0}"),
    "jwt": (jwt, "Authorization: Bearer {0}", "My session is {0}", "{0}"),
    "key": (key, "{0}", "Use this one:\n{0}", "I keep it here: {0}"),
    "wallet": (wallet, "Send it to {0}.", "My wallet: {0}"),
    "card": (card, "My card is {0}.", "Pay with {0}, please", "Karte {0}", "{0}", "numéro de carte {0}"),
}  # fmt: skip
PHONE_SAID = ("Call me at {0}.", "Phone {0}", "tel. {0}", "My mobile is {0}", "WhatsApp: {0}", "Ruf mich an: {0}",
              "Mon téléphone : {0}", "Mi teléfono es el {0}", "You reach us on {0}")  # fmt: skip
ID_SAID = ("My {kind} is {0}.", "{kind}: {0}", "{kind} {0}", "{0} ({kind})")


# what looks like it and is none -----------------------------------------------------------------------------
def wrong_card(rng: random.Random) -> str:
    number = card(rng)
    last = str((int(number[-1]) + rng.randint(1, 9)) % 10)
    return number[:-1] + last


def wrong_iban(rng: random.Random) -> str:
    number = iban(rng.choice(sorted(BBAN)))(rng)
    return number[:2] + f"{(int(number[2:4]) + rng.randint(1, 60)) % 97:02d}" + number[4:]


NO_CHECK = ("US SSN", "GB NINO", "FR NIR", "BE rijksregister", "DK CPR")
"""Ids without a check digit, or with two."""


def wrong_id(rng: random.Random) -> str:
    """A number of the right shape whose check digit (or letter) is another."""
    kind, make = NATIONAL[rng.choice([n for n in NATIONAL if n not in NO_CHECK])]
    number = make(rng)
    last = number[-1]
    other = rng.choice([c for c in ("0123456789" if last.isdigit() else "BCEFGHJKLMNPRSTVW") if c != last])
    return rng.choice(ID_SAID).format(number[:-1] + other, kind=kind)


def wrong_host(rng: random.Random) -> str:
    return "host " + ".".join(str(n) for n in (rng.randrange(256, 999), *(rng.randrange(256) for _ in range(3))))


SHAPES: dict[str, tuple[str, ...]] = {
    "dates and times": ("%#.1#.20##", "20##-1%-2#", "1%/2#/20##", "at 1#:##:##", "from 19## to 20##", "the 1#th of May",
                        "20##-0%-1#T1#:##:##Z", "1#.0%.19##"),
    "amounts": ("$%,###.##", "%# ### ### people", "%.###,## €", "%#,###,### km", "0.#### or 0.####", "%#.# \\%",
                "1:%###", "%## x %## x %##", "%#°C and %#\\%", "%.#\\%, %.#\\% and %.#\\%"),
    "versions": ("version %.#.#", "v%.##.#-rc.1", "Python 3.1#.#", "release %#.#.#.#", "kernel 6.%.#-##",
                 "ISO 9001:2015", "build %#.0.#.##"),
    "orders and parts": ("order \\#%#########", "invoice 20##-%####", "part no. %##-####-##", "ticket ABC-%####",
                         "row %####### of the table", "item %############", "ref. %###/##/####", "page %##-%##"),
    "books": ("ISBN 978-3-##-######-#", "ISSN ####-####", "doi 10.%###/^^^.####"),
    "hashes": ("commit " + "&" * 40, "sha256 " + "&" * 64, "colour \\#" + "&" * 6, "commit " + "&" * 8),
    "scores": ("won %-#, %-#, %-#", "a ratio of 16:9", "%#-%# at half-time", "set %/%/%", "%#/%## points"),
    "near addresses": ("\\@^^^^^^ said so", "^^^\\@", "a\\@b", "node.js and vue.js", "file.txt or main.py", "yes.no",
                       "www. alone", "%#:%#:%#", "&&:&&:&&", "e.g. this"),
    "near places": ("%.#, %.#", "chapters %#.#, %#.#", "9#.####, 2##.####1", "(%, %)", "p = 0.0##, r = 0.###"),
    "near keys": ("sk-learn", "eyes.and.ears", "ghp_short", "AKIA is a prefix", "password: (none)", "token: word piece",
                  "api_key = None", "secret = os.environ['X']", "key-value store", "SG.1", "hf_hub"),
    "words": ("Prefers short, direct answers with examples.", "Reads a call number as a shelf mark.",
              "A pin in the map is enough.", "The key to a good sauce is patience.", "Likes a token of thanks.",
              "The password must be long and easy to type.", "Says 'at' and 'dot' when reading aloud.",
              "Wants the secret of a good crust.", "and/or, e.g., i.e., etc.",
              "Cares about card games and phone cases.", "Calls it a day at ten.",
              "A mobile of paper birds hangs there."),
}  # fmt: skip
LOOKALIKES: dict[str, Make] = {kind: some(*shapes) for kind, shapes in SHAPES.items()} | {
    "UUIDs": lambda rng: str(uuid.UUID(int=rng.getrandbits(128))),
    "wrong cards": lambda rng: f"My card is {wrong_card(rng)}.",
    "wrong accounts": lambda rng: f"IBAN {wrong_iban(rng)}",
    "wrong ids": wrong_id,
    "wrong hosts": wrong_host,
}
AROUND = ("{0}", "It says {0} there.", "{0}, as before", "See {0}.", "Likes {0} best.")
BARE = ("Note: {0}", "{0} is right.", "I wrote {0} on the wall.")
"""Sentences that do not say what the number in them is."""
