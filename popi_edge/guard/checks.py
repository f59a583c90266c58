"""Check digits of cards, accounts and national ids: small pure functions, by the names that the spec's patterns use.

Each gets the digits and letters of a candidate, folded, without anything between them, and says whether they can be
what they look like. Sources: ISO/IEC 7812 (Luhn), ISO 13616 (IBAN), ISO 7064, and the countries' own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from popi_edge.guard.folding import spec

DIHEDRAL = tuple(
    tuple((a + b) % 5 + 5 * (b > 4) if a < 5 else (a - b) % 5 + 5 * (b < 5) for b in range(10)) for a in range(10)
)
TURN = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
DNI = "trwagmyfpdxbnjzsqvhlcke"
HETU = "0123456789abcdefhjklmnprstuvwxy"
ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
"""Codice fiscale: what the letters a to z (and the digits as a to j) count at odd places."""


def _sum(number: str, weights: Sequence[int]) -> int:
    return sum(int(c) * w for c, w in zip(number, weights, strict=False))


def luhn(number: str) -> bool:
    """Cards, Canadian and Swedish numbers."""
    doubled = (sum(divmod(2 * int(c), 10)) if i % 2 else int(c) for i, c in enumerate(reversed(number)))
    return number.isdigit() and sum(doubled) % 10 == 0


def card(number: str) -> bool:
    """A card's first digits and length, and Luhn."""
    for low, high, *lengths in spec()["cards"]:
        if len(number) in lengths and int(low) <= int(number[: len(str(low))]) <= int(high):
            return luhn(number)
    return False


def iban(number: str) -> bool:
    """The country's length, and the number's rest of 1 by 97 with letters as 10 to 35."""
    if spec()["iban_lengths"].get(number[:2]) != len(number):
        return False
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def verhoeff(number: str) -> bool:
    """Aadhaar."""
    check = 0
    for i, c in enumerate(reversed(number)):
        digit = int(c)
        for _ in range(i % 8):
            digit = TURN[digit]
        check = DIHEDRAL[check][digit]
    return check == 0


def month_and_day(digits: str) -> bool:
    """Whether four digits can be a month and a day; centuries may be told by 20, 40, 60, 80 added to the month."""
    return 1 <= int(digits[:2]) % 20 <= 12 and 1 <= int(digits[2:4]) <= 31


def nhs(n: str) -> bool:
    return (11 - _sum(n, range(10, 1, -1)) % 11) % 11 == int(n[9])


def mod_11_10(n: str) -> bool:
    """ISO 7064 mod 11, 10."""
    product = 10
    for c in n[:-1]:
        product = 2 * ((int(c) + product) % 10 or 10) % 11
    return (11 - product) % 10 == int(n[-1])


def steuer_id(n: str) -> bool:
    """Germany; in the first ten digits one comes two or three times."""
    return mod_11_10(n) and max(n[:10].count(c) for c in n[:10]) in (2, 3)


def german_vat(n: str) -> bool:
    return mod_11_10(n[2:]) and n[2] != "0"


def german_pension(n: str) -> bool:
    """Area, birth, a letter as two digits, an order: the sums of the digits of the products."""
    body = f"{n[:8]}{ord(n[8]) - 96:02d}{n[9:11]}"
    products = (int(c) * w for c, w in zip(body, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True))
    return sum(sum(divmod(p, 10)) for p in products) % 10 == int(n[11])


def nir(n: str) -> bool:
    """France; Corsica's 2A and 2B count as 19 and 18."""
    body = n[:13].replace("2a", "19").replace("2b", "18")
    return body.isdigit() and 97 - int(body) % 97 == int(n[13:])


def dni(n: str) -> bool:
    """Spain, also of foreigners, whose X, Y, Z count as 0, 1, 2."""
    return DNI[int(n[:-1].translate(str.maketrans("xyz", "012"))) % 23] == n[-1]


def codice_fiscale(n: str) -> bool:
    places = [int(c) if c.isdigit() else ord(c) - 97 for c in n[:15]]
    return sum(ODD[p] if i % 2 == 0 else p for i, p in enumerate(places)) % 26 == ord(n[15]) - 97


def bsn(n: str) -> bool:
    return (_sum(n, range(9, 1, -1)) - int(n[8])) % 11 == 0


def pesel(n: str) -> bool:
    return (_sum(n, (1, 3, 7, 9) * 2 + (1, 3)) + int(n[10])) % 10 == 0 and month_and_day(n[2:])


def personnummer(n: str) -> bool:
    """Sweden; from 60 on the day is that of a number given to somebody without one."""
    return luhn(n[-10:]) and 1 <= int(n[-8:-6]) <= 12 and 1 <= int(n[-6:-4]) % 60 <= 31


def hetu(n: str) -> bool:
    """Finland; the sign of the century, where it is a letter, stands between date and number."""
    return HETU[int(n[:6] + n[-4:-1]) % 31] == n[-1] and 1 <= int(n[:2]) <= 31 and 1 <= int(n[2:4]) <= 12


def cpf(n: str) -> bool:
    first = -_sum(n[:9], range(10, 1, -1)) % 11 % 10
    return int(n[9]) == first and int(n[10]) == -_sum(n[:10], range(11, 1, -1)) % 11 % 10 and len(set(n)) > 1


def ean(n: str) -> bool:
    return (_sum(n, (1, 3) * 6) + int(n[12])) % 10 == 0


def rijksregister(n: str) -> bool:
    """Belgium; from 2000 on a 2 stands before the number."""
    return 97 - int(n[:9]) % 97 == int(n[9:]) or 97 - int("2" + n[:9]) % 97 == int(n[9:])


def resident_id(n: str) -> bool:
    """China."""
    total = sum(int(c) * pow(2, 17 - i, 11) for i, c in enumerate(n[:17]))
    return "10x98765432"[total % 11] == n[17] and 1 <= int(n[10:12]) <= 12 and 1 <= int(n[12:14]) <= 31


def nif(n: str) -> bool:
    return (-_sum(n[:8], range(9, 1, -1)) % 11) % 10 == int(n[8])


def tfn(n: str) -> bool:
    return _sum(n, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def day_and_month(digits: str) -> bool:
    """Whether four digits can be a day and a month."""
    return 1 <= int(digits[:2]) <= 31 and 1 <= int(digits[2:4]) <= 12


def fodselsnummer(n: str) -> bool:
    """Norway; 40 more in the day is a number given to somebody without one, 40 or 80 in the month a hospital's."""
    born = f"{int(n[:2]) % 40:02d}{int(n[2:4]) % 40:02d}"
    one, two = _sum(n, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)), _sum(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1))
    return day_and_month(born) and one % 11 == two % 11 == 0


def cpr(n: str) -> bool:
    """Denmark: only a date, since 2007 there are numbers without a check digit."""
    return day_and_month(n)


def svnr(n: str) -> bool:
    """Austria; a month above twelve is used up where a day has too many births."""
    return _sum(n, (3, 7, 9, 0, 5, 8, 4, 2, 1, 6)) % 11 == int(n[3]) and n[0] != "0" and 1 <= int(n[4:6]) <= 31


def pps(n: str) -> bool:
    """Ireland; a second letter counts nine times its place in the alphabet, and W nothing."""
    second = 9 * (ord(n[8]) - 96) % 207 if len(n) == 9 and n[8] != "w" else 0
    return "wabcdefghijklmnopqrstuv"[(_sum(n[:7], range(8, 1, -1)) + second) % 23] == n[7]


def za_id(n: str) -> bool:
    return luhn(n) and 1 <= int(n[2:4]) <= 12 and 1 <= int(n[4:6]) <= 31


def rrn(n: str) -> bool:
    """Korea, as given until 2020; the later ones have no check digit."""
    total = _sum(n[:12], (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5))
    return (11 - total % 11) % 10 == int(n[12]) and 1 <= int(n[2:4]) <= 12 and 1 <= int(n[4:6]) <= 31


def rut(n: str) -> bool:
    """Chile."""
    return "0k987654321"[sum(int(c) * (2 + i % 6) for i, c in enumerate(reversed(n[:-1]))) % 11] == n[-1]


def kimlik(n: str) -> bool:
    """Turkey."""
    odd, even = sum(map(int, n[0:9:2])), sum(map(int, n[1:8:2]))
    return (7 * odd - even) % 10 == int(n[9]) and sum(map(int, n[:10])) % 10 == int(n[10])


def curp(n: str) -> bool:
    """Mexico."""
    signs = "0123456789abcdefghijklmn\0opqrstuvwxyz"
    return -sum((18 - i) * signs.index(c) for i, c in enumerate(n[:17])) % 10 == int(n[17]) and month_and_day(n[6:])


CHECKS: dict[str, Callable[[str], bool]] = {
    f.__name__: f
    for f in (luhn, card, iban, verhoeff, nhs, steuer_id, nir, dni, codice_fiscale, bsn, pesel, personnummer, hetu, cpf,
              ean, rijksregister, resident_id, nif, tfn, german_vat, german_pension, fodselsnummer, cpr, svnr, pps,
              za_id, rrn, rut, kimlik, curp)
}  # fmt: skip
