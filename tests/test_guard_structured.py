"""Personal data that has a form is found by its form and its check digits, and look-alikes are let be."""

from __future__ import annotations

import importlib
import random
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import guard_pii
from bench.pii_values import BBAN, NATIONAL, card, iban
from popi_edge.guard import check, spec
from popi_edge.guard.checks import CHECKS
from popi_edge.guard.finding import RULES, Clock
from popi_edge.guard.folding import fold_with_places
from popi_edge.guard.libraries import ADDS, IDS, LIBRARIES, PLUGINS, added, available, keys
from popi_edge.guard.structured import _hits, patterns, structured
from popi_edge.vocabulary import Lexicon

LEXICON = Lexicon.load()
STDNUM = {
    "nhs": "gb.nhs", "steuer_id": "de.idnr", "nir": "fr.nir", "dni": "es.dni", "codice_fiscale": "it.codicefiscale",
    "bsn": "nl.bsn", "pesel": "pl.pesel", "personnummer": "se.personnummer", "hetu": "fi.hetu", "cpf": "br.cpf",
    "verhoeff": "in_.aadhaar", "ean": "ch.ssn", "rijksregister": "be.nn", "resident_id": "cn.ric", "nif": "pt.nif",
    "tfn": "au.tfn", "luhn": "ca.sin", "fodselsnummer": "no.fodselsnummer", "svnr": "at.vnr", "pps": "ie.pps",
    "za_id": "za.idnr", "rrn": "kr.rrn", "rut": "cl.rut", "kimlik": "tr.tckimlik", "curp": "mx.curp",
}  # fmt: skip
MADE = {
    "nhs": "GB NHS", "steuer_id": "DE Steuer-ID", "nir": "FR NIR", "dni": "ES DNI",
    "codice_fiscale": "IT codice fiscale", "bsn": "NL BSN", "pesel": "PL PESEL",
    "personnummer": "SE personnummer", "hetu": "FI hetu", "cpf": "BR CPF",
    "verhoeff": "IN Aadhaar", "ean": "CH AHV", "rijksregister": "BE rijksregister", "resident_id": "CN id",
    "nif": "PT NIF", "tfn": "AU TFN", "luhn": "CA SIN", "fodselsnummer": "NO fødselsnummer", "svnr": "AT SVNR",
    "pps": "IE PPS", "za_id": "ZA id", "rrn": "KR RRN", "rut": "CL RUT", "kimlik": "TR kimlik", "curp": "MX CURP",
}  # fmt: skip


def core(number: str) -> str:
    return re.sub(r"[^0-9a-z]", "", number.lower())


def valid(name: str, number: str) -> bool:
    """What python-stdnum says."""
    module: Any = importlib.import_module(f"stdnum.{STDNUM[name]}")
    return bool(module.is_valid(number))


@pytest.mark.parametrize("name", sorted(STDNUM))
def test_check_digits_agree_with_python_stdnum(name: str) -> None:
    make = NATIONAL[MADE[name]][1]
    rng, agreed = random.Random(name), 0
    for _ in range(60):
        number = make(rng)
        assert valid(name, number) and CHECKS[name](core(number))
        last = number[-1]
        for other in "0123456789" if last.isdigit() else "ABCDEFGHJK":
            if other != last:
                assert not CHECKS[name](core(number[:-1] + other)) or valid(name, number[:-1] + other)
                agreed += 1
    assert agreed > 500


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789", min_size=8, max_size=19))
def test_luhn_and_verhoeff_agree_with_python_stdnum_on_any_number(number: str) -> None:
    from stdnum import luhn, verhoeff

    assert CHECKS["luhn"](number) == luhn.is_valid(number)
    assert CHECKS["verhoeff"](number) == verhoeff.is_valid(number)


def test_accounts_agree_with_python_stdnum() -> None:
    from stdnum import iban as library

    rng = random.Random(3)
    for country in sorted(BBAN):
        for _ in range(20):
            number = iban(country)(rng)
            assert CHECKS["iban"](core(number)) and library.is_valid(number, check_country=False)
            wrong = number[:2] + f"{(int(number[2:4]) + rng.randint(1, 90)) % 100:02d}" + number[4:]
            assert CHECKS["iban"](core(wrong)) == library.is_valid(wrong, check_country=False)


def test_the_lengths_of_accounts_are_those_of_python_stdnum() -> None:
    from stdnum.iban import _ibandb

    for country, length in spec()["iban_lengths"].items():
        shape = _ibandb.info(country.upper() + "00" + "0" * 40)[0][1]["bban"]
        assert 4 + sum(int(n) for n in re.findall(r"(\d+)!", shape)) == length, country


def test_cards_have_a_first_digit_a_length_and_a_check_digit() -> None:
    rng = random.Random(1)
    for _ in range(200):
        number = core(card(rng))
        assert CHECKS["card"](number)
        assert not CHECKS["card"](number[:-1] + str((int(number[-1]) + 1) % 10))
        assert not CHECKS["card"](number + "0") or len(number) + 1 in (16, 17, 18, 19)
    assert not CHECKS["card"]("9" + "0" * 14 + "1")


# the generated set ----------------------------------------------------------------------------------------------
@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, n in {"phone": 6, "iban": 4, "national_id": 8, "other": 25, "lookalike": 30, "bare": 3}.items():
        monkeypatch.setitem(guard_pii.EACH, kind, n)


@pytest.mark.usefixtures("few")
def test_recall_and_false_alarms_on_generated_texts() -> None:
    made = guard_pii.cases(seed=11)
    both = guard_pii.measure(made, lambda text: structured(text))
    assert both["recall"] >= 0.99 and both["false_alarms"] <= 0.02, both["wrong"]
    alone = guard_pii.measure(made, lambda text: structured(text, libraries=False))
    assert alone["recall"] >= 0.99 and alone["false_alarms"] <= 0.02, alone["wrong"]
    assert not [c.text for c in made if c.rule and not check(c.text, (), LEXICON)]


@pytest.mark.usefixtures("few")
def test_a_measure_can_fail() -> None:
    made = guard_pii.cases(seed=11)
    blind = guard_pii.measure(made, lambda text: [])
    assert blind["recall"] == 0 == blind["false_alarms"]
    trigger = guard_pii.measure(made, lambda text: structured("My card is 4111 1111 1111 1111."))
    assert trigger["false_alarms"] == 1.0 and trigger["recall"] < 0.6


@pytest.mark.parametrize(
    ("text", "rule", "excerpt"),
    [
        ("Pay ٤١١١ ١١١١ ١١١١ ١١١١ now", "card", "٤١١١ ١١١١ ١١١١ ١١١١"),
        ("Pay 4111-1111-1111-1111.", "card", "4111-1111-1111-1111"),
        ("to DE89 3704 0044 0532 0130 00 please", "iban", "DE89 3704 0044 0532 0130 00"),
        ("at 52.52000, 13.40500.", "coordinates", "52.52000, 13.40500"),
        ("a.b@mail.example.org, please", "email", "a.b@mail.example.org"),
        ("my PIN is 90417!", "key", "PIN is 90417!"),
        ("at fe80::1:2, port one", "ip", "fe80::1:2"),
        ("00:1A:2B:3C:4D:5E", "mac", "00:1A:2B:3C:4D:5E"),
        ("passport C01X00T47", "national_id", "C01X00T47"),
    ],
)
def test_what_is_found_stands_where_it_is_said_to(text: str, rule: str, excerpt: str) -> None:
    found = structured(text, libraries=False)
    assert [(f.rule, f.excerpt, text[f.start : f.end], f.by) for f in found] == [(rule, excerpt, excerpt, "popi")]


@pytest.mark.parametrize(
    "text",
    ["version 10.1.2.3", "Pay 4111 1111 1111 1112", "DE88 3704 0044 0532 0130 00", "3.14, 2.71", "9 to 5", "2024-05-13",
     "and/or", "a@b", "node.js", "12:30:45", "sk-learn", "the password is long", "ISBN 978-3-16-148410-0"],
)  # fmt: skip
def test_look_alikes_are_let_be(text: str) -> None:
    assert structured(text) == []


def test_every_pattern_has_a_rule_a_check_that_exists_and_is_made_for_folded_text() -> None:
    assert len(patterns()) > 60
    for pattern in patterns():
        assert pattern.rule in RULES and (pattern.check is None or pattern.check in CHECKS)
        assert not re.search(r"(?<!\\)[A-Z]", re.sub(r"\\[A-Z]", "", pattern.regex.pattern)), pattern.regex.pattern


@pytest.mark.parametrize(
    "unit", ["1", "1 ", "a@", "a.", "-", "a at ", "1-", "+1", "de11", "::", "://", "(1", "eyJ.", "pin "]
)
def test_no_pattern_runs_away_on_a_long_row_of_anything(unit: str) -> None:
    text = (unit * 4_000)[:4_000]
    structured(text, libraries=False, clock=Clock(20))  # raises TimeoutError where one does


TOLD = {
    "a US social security number": "SSN 219 09 9999", "a Swedish personal number": "personnummer 811228-9874",
    "an Indian tax number": "PAN ABCPE1234F", "a German VAT number": "USt-IdNr. DE136695976",
    "a German pension number": "15 070649 C 103", "a passport number": "passport C01X00T47",
    "coordinates": "position 52.520, 13.405", "a Google key": "AIza" + "Q7" * 17 + "x",
    "a wallet key": "private key " + "9f" * 32,
}  # fmt: skip
"""Of what the generated texts do not hold."""


def test_every_pattern_finds_something() -> None:
    made = [*TOLD.values(), *(c.text for c in guard_pii.cases(seed=0) if c.rule), "personnummer 8112289874"]
    folded = [(fold_with_places(text), text) for text in made]
    for p in patterns():
        assert any(True for (f, places), t in folded for _ in _hits(p, f, t, places)), (p.what, p.regex.pattern)


def test_german_numbers_agree_with_python_stdnum_and_with_a_published_example() -> None:
    from stdnum.de import vat

    rng = random.Random(5)
    for _ in range(300):
        number = str(rng.randrange(100_000_000, 999_999_999))
        assert CHECKS["german_vat"]("de" + number) == vat.is_valid("DE" + number)
    assert [d for d in range(10) if CHECKS["german_pension"](f"15070649c10{d}")] == [3]


def test_a_danish_number_has_a_date_and_an_irish_one_perhaps_a_second_letter() -> None:
    from stdnum.ie import pps

    assert CHECKS["cpr"]("2110625629") and not CHECKS["cpr"]("3213625629")
    rng = random.Random(6)
    for _ in range(300):
        number = f"{rng.randrange(10_000_000):07d}{rng.choice('ABCDEFGHIJKLMNOPQRSTUVW')}{rng.choice('ABH')}"
        assert CHECKS["pps"](number.lower()) == pps.is_valid(number), number


# libraries ------------------------------------------------------------------------------------------------------
def test_what_a_library_finds_names_it() -> None:
    found = {f.rule: f for f in structured("Rodné číslo 710319/2745, kennitala 450401-3150")}
    assert found["national_id"].by == f"stdnum {available()['stdnum']}"
    (phone,) = [f for f in added("Notiert: 601 234 567.", Clock(30)) if f.rule == "phone"]
    assert phone.by.startswith("phonenumbers ") and phone.excerpt == "601 234 567"
    assert structured("Notiert: 601 234 567.", libraries=False) == []
    (key,) = [f for f in added("AccountKey=" + "aB3/" * 21 + "aB3=", Clock(30)) if f.rule == "key"]
    assert key.by.startswith("detect_secrets ")


def test_the_libraries_lists_name_what_there_is() -> None:
    assert set(available()) == set(LIBRARIES) == set(ADDS)
    for name in IDS:
        assert callable(importlib.import_module(f"stdnum.{name}").is_valid)
    for path in PLUGINS:
        module, name = path.split(".")
        assert hasattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)


def test_no_key_is_sent_anywhere_to_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    text = "aws AKIAIOSFODNN7EXAMPLE and xoxb-123456789012-123456789012-" + "a1B2" * 6 + " and sk_live_" + "a1B2" * 6
    assert len(list(keys(text))) >= 3


def test_a_library_that_fails_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> Iterator[None]:
        raise OSError("its data are gone")

    monkeypatch.setattr("popi_edge.guard.libraries.phones", broken)
    found = [f for f in check("Call 5 now", (), LEXICON) if f.rule == "structured"]
    assert len(found) == 1 and "OSError" in found[0].message


