"""Made-up cards, accounts, phone numbers and national ids, right by their own rules; for ``bench.guard_pii``.

Check digits are computed here, apart from the guard's and from any library's. Numbers are random: one may belong to
somebody by chance. Phone numbers follow the national plans' shapes, with ranges for fiction where a plan has them.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable

Make = Callable[[random.Random], str]
UPPER, LOWER, DIGITS = string.ascii_uppercase, string.ascii_lowercase, string.digits


def fill(shape: str, rng: random.Random) -> str:
    """A shape with its signs drawn: # a digit, % a digit but 0, @ a capital, ^ a small letter, * a letter or digit, & a
    hex digit; a backslash takes the next sign as it is."""
    pools = {"#": DIGITS, "%": DIGITS[1:], "@": UPPER, "^": LOWER, "*": UPPER + LOWER + DIGITS, "&": "0123456789abcdef"}
    signs = re.findall(r"\\?.", shape, re.DOTALL)
    return "".join(rng.choice(pools[c]) if c in pools else c.removeprefix("\\") for c in signs)


def some(*shapes: str) -> Make:
    """One of the shapes, filled."""
    return lambda rng: fill(rng.choice(shapes), rng)


def digits(n: int, rng: random.Random) -> str:
    return fill("%" + "#" * (n - 1), rng)


def luhn(body: str) -> str:
    total = sum(sum(divmod(int(c) * (2 if i % 2 == 0 else 1), 10)) for i, c in enumerate(reversed(body)))
    return str(-total % 10)


def weigh(body: str, weights: tuple[int, ...]) -> int:
    return sum(int(c) * w for c, w in zip(body, weights, strict=True))


def grouped(number: str, sizes: tuple[int, ...], joint: str) -> str:
    out, at = [], 0
    for n in sizes:
        out.append(number[at : at + n])
        at += n
    return joint.join(out)


def card(rng: random.Random) -> str:
    brand, n = rng.choice([("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16),
                           ("3528", 16), ("36", 14), ("62", 16)])  # fmt: skip
    body = brand + "".join(rng.choice(DIGITS) for _ in range(n - 1 - len(brand)))
    number = body + luhn(body)
    sizes = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4)}[n]
    return grouped(number, sizes, rng.choice(("", " ", "-")))


BBAN = {
    "DE": "#" * 18, "FR": "#" * 10 + "*" * 11 + "##", "ES": "#" * 20, "IT": "@" + "#" * 22, "NL": "@@@@" + "#" * 10,
    "PL": "#" * 24, "SE": "#" * 20, "CH": "#" * 17, "AT": "#" * 16, "GB": "@@@@" + "#" * 14, "BE": "#" * 12,
    "PT": "#" * 21, "DK": "#" * 14, "NO": "#" * 11, "FI": "#" * 14, "IE": "@@@@" + "#" * 14,
}  # fmt: skip


def iban(country: str) -> Make:
    def make(rng: random.Random) -> str:
        bban = fill(BBAN[country], rng).upper()
        number = int("".join(str(int(c, 36)) for c in bban + country + "00"))
        whole = f"{country}{98 - number % 97:02d}{bban}"
        spaced = " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))
        return rng.choice((whole, spaced, spaced.lower()))

    return make


PHONES: dict[str, Make] = {
    "US": some("(212) 555-01##", "+1 415 555 01##", "415-555-01##", "+1 (646) 555-01##", "1-303-555-01##"),
    "CA": some("(416) 555-01##", "+1 604-555-01##", "514-555-01##"),
    "GB": some("020 7946 0###", "+44 20 7946 0###", "07700 900###", "+44 7700 900###", "(0161) 496 0###"),
    "DE": some("030 23125 ###", "+49 30 23125 ###", "(030) 23125 ###", "0171 39200 ##", "+49 171 39200##",
               "0151 2345 ####"),
    "FR": some("01 99 00 ## ##", "+33 1 99 00 ## ##", "06 39 98 ## ##", "+33 6 39 98 ## ##", "06.39.98.##.##"),
    "ES": some("91 234 ## ##", "+34 91 234 ## ##", "612 34 ## ##", "+34 612 34 ## ##", "+34 612 345 ###"),
    "IT": some("06 6982 ####", "+39 06 6982 ####", "347 123 ####", "+39 347 123 ####"),
    "NL": some("020 123 ####", "+31 20 123 ####", "06 1234 ####", "06-1234####", "+31 6 1234 ####"),
    "PL": some("22 123 ## ##", "+48 22 123 ## ##", "601 234 ###", "+48 601 234 ###"),
    "SE": some("08-123 456 ##", "+46 8 123 456 ##", "070-123 45 ##", "+46 70 123 45 ##"),
    "CH": some("044 668 18 ##", "+41 44 668 18 ##", "079 123 45 ##", "+41 79 123 45 ##"),
    "AT": some("01 5321 ####", "+43 1 5321 ####", "0664 123 ####", "+43 664 123####"),
    "BR": some("(11) 91234-####", "+55 11 91234-####", "(21) 2345-####", "+55 21 2345-####"),
    "IN": some("098765 4####", "+91 98765 4####", "+91-98765-4####", "022 2345 ####"),
    "JP": some("03-1234-####", "+81 3-1234-####", "090-1234-####", "+81 90-1234-####"),
    "AU": some("(02) 5550 ####", "+61 2 5550 ####", "0491 570 ###", "+61 491 570 ###"),
    "MX": some("55 1234 ####", "+52 55 1234 ####"),
    "PT": some("21 123 ####", "+351 21 123 ####", "912 345 ###", "+351 912 345 ###"),
}  # fmt: skip


def day(rng: random.Random) -> tuple[int, int, int]:
    """Year, month, day of a birth."""
    return rng.randint(1945, 1999), rng.randint(1, 12), rng.randint(1, 28)


def steuer_id(rng: random.Random) -> str:
    """Germany: ten digits of which exactly one comes twice, and a check digit by ISO 7064 mod 11, 10."""
    body = rng.sample(DIGITS, 10)
    body[rng.randrange(1, 10)] = body[0]
    if body[0] == "0":
        return steuer_id(rng)
    product = 10
    for c in body:
        total = (int(c) + product) % 10 or 10
        product = 2 * total % 11
    return "".join(body) + str((11 - product) % 10)


def nir(rng: random.Random) -> str:
    """France: sex, year, month, place, order, and 97 less the rest of dividing by 97."""
    body = f"{rng.choice('12')}{rng.randint(45, 99)}{rng.randint(1, 12):02d}{rng.randint(1, 95):02d}"
    body = body.replace("20", "21") if body[5:7] == "20" else body
    body += f"{rng.randint(1, 990):03d}{rng.randint(1, 999):03d}"
    whole = body + f"{97 - int(body) % 97:02d}"
    return rng.choice((whole, grouped(whole, (1, 2, 2, 2, 3, 3, 2), " ")))


def dni(rng: random.Random) -> str:
    number = rng.randrange(10_000_000, 99_999_999)
    return f"{number}{rng.choice(('', '-'))}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def nie(rng: random.Random) -> str:
    first, rest = rng.randrange(3), rng.randrange(0, 9_999_999)
    return f"{'XYZ'[first]}{rest:07d}{'TRWAGMYFPDXBNJZSQVHLCKE'[(first * 10_000_000 + rest) % 23]}"


ODD = dict(zip(DIGITS + UPPER, (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11,
                                3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23), strict=True))  # fmt: skip


def codice_fiscale(rng: random.Random) -> str:
    year, month, date = day(rng)
    letters = "".join(rng.choice("BCDFGLMNPRSTVZ") for _ in range(6))
    body = f"{letters}{year % 100:02d}{'ABCDEHLMPRST'[month - 1]}{date + 40 * rng.randrange(2):02d}H{fill('###', rng)}"
    total = sum(ODD[c] if i % 2 == 0 else (int(c) if c.isdigit() else ord(c) - 65) for i, c in enumerate(body))
    return body + UPPER[total % 26]


def by_weights(n: int, weights: tuple[int, ...], last: Callable[[int], int | None], **shape: tuple[int, ...]) -> Make:
    """A body of n digits and a check digit, ``last`` of the weighted sum (None: not a body); perhaps grouped."""

    def make(rng: random.Random) -> str:
        while True:
            body = digits(n, rng)
            check = last(weigh(body, weights))
            if check is not None and check < 10:
                number = f"{body}{check}"
                for joint, sizes in shape.items():
                    number = rng.choice((number, grouped(number, sizes, {"spaced": " ", "dotted": "."}[joint])))
                return number

    return make


def pesel(rng: random.Random) -> str:
    year, month, date = day(rng)
    body = f"{year % 100:02d}{month:02d}{date:02d}{fill('####', rng)}"
    return body + str(-weigh(body, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10)


def personnummer(rng: random.Random) -> str:
    year, month, date = day(rng)
    body = f"{year % 100:02d}{month:02d}{date:02d}{fill('###', rng)}"
    return f"{rng.choice(('', '19'))}{body[:6]}-{body[6:]}{luhn(body)}"


def hetu(rng: random.Random) -> str:
    year, month, date = day(rng)
    first, number = f"{date:02d}{month:02d}{year % 100:02d}", rng.randint(2, 899)
    return f"{first}-{number:03d}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(f'{first}{number:03d}') % 31]}"


def cpf(rng: random.Random) -> str:
    body = digits(9, rng)
    for _ in range(2):
        total = sum(int(c) * w for c, w in zip(body, range(len(body) + 1, 1, -1), strict=True))
        body += str(0 if total % 11 < 2 else 11 - total % 11)
    return rng.choice((body, f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"))


D5 = [[(a + b) % 5 if a < 5 and b < 5 else 5 + (a + b) % 5 if a < 5 else 5 + (a - b) % 5 if b < 5 else (a - b) % 5
       for b in range(10)] for a in range(10)]  # fmt: skip
STEP = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def aadhaar(rng: random.Random) -> str:
    """India: eleven digits and a check digit after Verhoeff."""
    body, check = rng.choice("23456789") + fill("#" * 10, rng), 0

    def turned(digit: int, times: int) -> int:
        for _ in range(times % 8):
            digit = STEP[digit]
        return digit

    for i, c in enumerate(reversed(body), 1):
        check = D5[check][turned(int(c), i)]
    number = body + str(next(d for d in range(10) if D5[check][d] == 0))
    return rng.choice((number, grouped(number, (4, 4, 4), " ")))


def ahv(rng: random.Random) -> str:
    body = "756" + fill("#" * 9, rng)
    number = body + str(-weigh(body, (1, 3) * 6) % 10)
    return rng.choice((number, grouped(number, (3, 4, 4, 2), ".")))


def rijksregister(rng: random.Random) -> str:
    year, month, date = day(rng)
    body = f"{year % 100:02d}{month:02d}{date:02d}{rng.randint(1, 997):03d}"
    number = f"{body}{97 - int(body) % 97:02d}"
    return rng.choice((number, f"{body[:2]}.{body[2:4]}.{body[4:6]}-{body[6:9]}.{number[9:]}"))


def resident_id(rng: random.Random) -> str:
    """China: region, birth, order, and a check sign by ISO 7064 mod 11, 2."""
    year, month, date = day(rng)
    body = f"{rng.choice(('110101', '310104', '110105'))}{year}{month:02d}{date:02d}{fill('###', rng)}"
    total = sum(int(c) * pow(2, 17 - i, 11) for i, c in enumerate(body))
    return body + "0123456789X"[(12 - total) % 11]


def ssn(rng: random.Random) -> str:
    area = rng.choice((rng.randint(1, 665), rng.randint(667, 899)))
    return f"{area:03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"


def nino(rng: random.Random) -> str:
    body = rng.choice("ABCEGHJKLMPRSTWXYZ") + rng.choice("ABCEHJKLMPRSTWXYZ") + fill("######", rng) + rng.choice("ABCD")
    return rng.choice((body, grouped(body, (2, 2, 2, 2, 1), " ")))


def luhned(first: str, n: int, sizes: tuple[int, ...]) -> Make:
    """A number whose first digit is one of ``first`` and whose last is by Luhn."""

    def make(rng: random.Random) -> str:
        body = rng.choice(first) + fill("#" * (n - 1), rng)
        return rng.choice((body + luhn(body), grouped(body + luhn(body), sizes, " ")))

    return make


def fodselsnummer(rng: random.Random) -> str:
    """Norway: a date, an order and two check digits."""
    while True:
        year, month, date = day(rng)
        body = f"{date:02d}{month:02d}{year % 100:02d}{rng.randint(0, 499):03d}"
        one = -weigh(body, (3, 7, 6, 1, 8, 9, 4, 5, 2)) % 11
        two = -weigh(f"{body}{one % 10}", (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
        if one < 10 and two < 10:
            return rng.choice((f"{body}{one}{two}", f"{body[:6]} {body[6:]}{one}{two}"))


def cpr(rng: random.Random) -> str:
    year, month, date = day(rng)
    return f"{date:02d}{month:02d}{year % 100:02d}-{rng.randrange(4)}{fill('###', rng)}"


def svnr(rng: random.Random) -> str:
    """Austria: an order, a check digit, and a date."""
    while True:
        year, month, date = day(rng)
        order, born = fill("%##", rng), f"{date:02d}{month:02d}{year % 100:02d}"
        check = (weigh(order, (3, 7, 9)) + weigh(born, (5, 8, 4, 2, 1, 6))) % 11
        if check < 10:
            return f"{order}{check}{rng.choice(('', ' '))}{born}"


def pps(rng: random.Random) -> str:
    body = fill("#" * 7, rng)
    return body + "WABCDEFGHIJKLMNOPQRSTUV"[weigh(body, (8, 7, 6, 5, 4, 3, 2)) % 23]


def south_african(rng: random.Random) -> str:
    year, month, date = day(rng)
    body = f"{year % 100:02d}{month:02d}{date:02d}{fill('####', rng)}{rng.randrange(2)}8"
    return body + luhn(body)


def rrn(rng: random.Random) -> str:
    """Korea."""
    year, month, date = day(rng)
    body = f"{year % 100:02d}{month:02d}{date:02d}{rng.choice('12')}{rng.randrange(96):02d}{fill('###', rng)}"
    return f"{body[:6]}-{body[6:]}{(11 - weigh(body, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10}"


def rut(rng: random.Random) -> str:
    """Chile."""
    body = str(rng.randint(5_000_000, 26_000_000))
    total = sum(int(c) * (2 + i % 6) for i, c in enumerate(reversed(body)))
    check = "0K987654321"[total % 11]
    return rng.choice((f"{body}-{check}", f"{int(body):,}".replace(",", ".") + f"-{check}"))


def kimlik(rng: random.Random) -> str:
    """Turkey."""
    body = digits(9, rng)
    n = [int(c) for c in body]
    body += str((7 * sum(n[::2]) - sum(n[1::2])) % 10)
    return body + str(sum(map(int, body)) % 10)


def curp(rng: random.Random) -> str:
    """Mexico."""
    year, month, date = day(rng)
    body = f"{rng.choice('BCGHLMR')}{rng.choice('AEIOU')}{fill('@@', rng)}{year % 100:02d}{month:02d}{date:02d}"
    body += rng.choice("HM") + rng.choice(("DF", "JC", "NL", "OC"))
    body += "".join(rng.choice("BCDFGLMNRS") for _ in range(3)) + "0"
    signs = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"
    return body + str(-sum((18 - i) * signs.index(c) for i, c in enumerate(body)) % 10)


def eleven(total: int) -> int:
    return total % 11


NATIONAL: dict[str, tuple[str, Make]] = {
    "US SSN": ("SSN", ssn),
    "GB NINO": ("National Insurance number", nino),
    "GB NHS": ("NHS number", by_weights(9, tuple(range(10, 1, -1)), lambda t: (11 - t % 11) % 11, spaced=(3, 3, 4))),
    "DE Steuer-ID": ("Steuer-ID", steuer_id),
    "FR NIR": ("numéro de sécurité sociale", nir),
    "ES DNI": ("DNI", dni),
    "ES NIE": ("NIE", nie),
    "IT codice fiscale": ("codice fiscale", codice_fiscale),
    "NL BSN": ("BSN", by_weights(8, tuple(range(9, 1, -1)), eleven)),
    "PL PESEL": ("PESEL", pesel),
    "SE personnummer": ("personnummer", personnummer),
    "FI hetu": ("henkilötunnus", hetu),
    "BR CPF": ("CPF", cpf),
    "IN Aadhaar": ("Aadhaar", aadhaar),
    "CA SIN": ("SIN", luhned("1234567", 8, (3, 3, 3))),
    "CH AHV": ("AHV-Nummer", ahv),
    "BE rijksregister": ("rijksregisternummer", rijksregister),
    "CN id": ("resident ID", resident_id),
    "PT NIF": ("NIF", by_weights(8, tuple(range(9, 1, -1)), lambda t: 0 if t % 11 < 2 else 11 - t % 11)),
    "NO fødselsnummer": ("fødselsnummer", fodselsnummer),
    "DK CPR": ("CPR-nummer", cpr),
    "AT SVNR": ("Sozialversicherungsnummer", svnr),
    "IE PPS": ("PPS number", pps),
    "ZA id": ("South African ID", south_african),
    "KR RRN": ("resident registration number", rrn),
    "CL RUT": ("RUT", rut),
    "TR kimlik": ("kimlik no", kimlik),
    "MX CURP": ("CURP", curp),
    "AU TFN": ("tax file number", by_weights(8, (1, 4, 3, 7, 5, 8, 6, 9), eleven, spaced=(3, 3, 3))),
}  # fmt: skip
