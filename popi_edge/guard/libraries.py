"""What installed Python libraries find on top of the shared patterns: phones, national ids, keys (extra ``guard``).

phonenumbers knows every country's numbers, python-stdnum some thirty more national ids (asked only where a word for one
stands near), detect-secrets more services' keys. Its own verification, which would ask those services, is never used:
only ``analyze_string`` is called. They are loaded when a text has a digit or a sign that could belong to such data.

Bindings do not have these: a finding says in ``by`` which library it is from.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator
from typing import Any

from popi_edge.guard.finding import Clock, Finding
from popi_edge.guard.folding import fold_with_places, spec

LIBRARIES = {
    "phonenumbers": ("phonenumberslite", "phonenumbers"),
    "stdnum": ("python-stdnum",),
    "detect_secrets": ("detect-secrets",),
}
"""Module → the distributions that it can come from."""
ADDS = {"phonenumbers": ("phone",), "stdnum": ("national_id",), "detect_secrets": ("key",)}
"""Module → the rules that it adds findings to."""
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "SE", "CH", "AT", "BR", "IN", "JP", "AU", "MX", "PT", "BE")
"""Whose national phone numbers are tried where no country code is given."""
IDS = {
    "ar.cuit": r"\bcui[lt]\b",
    "il.idnr": r"\bid\b|identity|teudat",
    "ro.cnp": r"\bcnp\b|cod numeric",
    "cz.rc": r"rodne|\brc\b",
    "sk.rc": r"rodne",
    "bg.egn": r"\begn\b",
    "hr.oib": r"\boib\b",
    "lt.asmens": r"asmens",
    "ee.ik": r"isikukood",
    "gr.amka": r"\bamka\b",
    "th.pin": r"\bpin\b|national id|identity|citizen",
    "my.nric": r"\bnric\b|mykad",
    "co.nit": r"\bnit\b",
    "pe.ruc": r"\bruc\b",
    "ec.ci": r"cedula",
    "do.cedula": r"cedula",
    "uy.rut": r"\brut\b",
    "nz.ird": r"\bird\b",
    "si.emso": r"emso",
    "is_.kennitala": r"kennitala",
    "jp.in_": r"my number|individual number",
    "fr.nif": r"numero fiscal|\bspi\b|\bnif\b",
    "br.cnpj": r"\bcnpj\b",
    "de.stnr": r"steuernummer",
    "eu.vat": r"\bvat\b|ust-?id|\btva\b|\biva\b|\bbtw\b",
    "us.itin": r"\bitin\b",
    "us.ein": r"\bein\b|employer identification",
    "cn.uscc": r"\buscc\b|social credit",
    "in_.pan": r"\bpan\b",
    "in_.vid": r"virtual id",
    "bitcoin": r"",
}
"""python-stdnum's modules, and the words one of which must stand near (none: the form itself is telling)."""
CANDIDATE = re.compile(r"[a-z0-9./-]*\d[a-z0-9./-]*(?: [a-z0-9./-]*\d[a-z0-9./-]*)*")
PLUGINS = (
    "artifactory.ArtifactoryDetector", "aws.AWSKeyDetector", "azure_storage_key.AzureStorageKeyDetector",
    "basic_auth.BasicAuthDetector", "cloudant.CloudantDetector", "discord.DiscordBotTokenDetector",
    "github_token.GitHubTokenDetector", "gitlab_token.GitLabTokenDetector", "ibm_cloud_iam.IbmCloudIamDetector",
    "ibm_cos_hmac.IbmCosHmacDetector", "jwt.JwtTokenDetector", "mailchimp.MailchimpDetector", "npm.NpmDetector",
    "openai.OpenAIDetector", "private_key.PrivateKeyDetector", "pypi_token.PypiTokenDetector",
    "sendgrid.SendGridDetector", "slack.SlackDetector", "softlayer.SoftlayerDetector",
    "square_oauth.SquareOAuthDetector", "stripe.StripeDetector", "telegram_token.TelegramBotTokenDetector",
    "twilio.TwilioKeyDetector",
)  # fmt: skip
"""detect-secrets' detectors of services' keys; not those of high entropy, keywords and public addresses."""


@functools.cache
def available() -> dict[str, str]:
    """The libraries that are installed, with their versions."""
    found: dict[str, str] = {}
    for module, distributions in LIBRARIES.items():
        for name in distributions:
            try:
                found.setdefault(module, importlib.metadata.version(name))
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def added(text: str, clock: Clock) -> list[Finding]:
    """What the installed libraries find in a text. Raises what they raise, and TimeoutError."""
    finders: dict[str, Callable[[str], Iterator[Finding]]] = {
        "phonenumbers": phones, "stdnum": ids, "detect_secrets": keys,
    }  # fmt: skip
    found: list[Finding] = []
    for name, finder in finders.items():
        if name in available():
            clock.check()
            found += finder(text)
    return found


def _finding(rule: str, text: str, start: int, end: int, what: str, library: str) -> Finding:
    by = f"{library} {available()[library]}"
    return Finding(rule, start, end, text[start:end], None, f"{what}: {text[start:end][:60]!r}", by)


def phones(text: str) -> Iterator[Finding]:
    """Numbers with a country code, and national ones that are grouped as their country groups them."""
    import phonenumbers

    folded, places = fold_with_places(text)
    if sum(map(str.isdigit, folded)) < 7:
        return
    seen: set[tuple[int, int]] = set()
    leniency = phonenumbers.Leniency
    for region in (None, *REGIONS):
        how = leniency.VALID if region is None else leniency.EXACT_GROUPING
        for match in phonenumbers.PhoneNumberMatcher(folded, region, how):
            grouped = region is None or len(re.findall(r"\d+", match.raw_string)) > 2
            if grouped and (match.start, match.end) not in seen and not _dated(match.raw_string):
                seen.add((match.start, match.end))
                a, b = places[match.start], places[match.end - 1] + 1
                where = phonenumbers.region_code_for_number(match.number) or "some country"
                yield _finding("phone", text, a, b, f"a phone number ({where})", "phonenumbers")


def _dated(raw: str) -> bool:
    """Whether a "phone number" could as well be a date."""
    return re.fullmatch(r"\D*(?:\d{4}[./ -]\d{1,2}[./ -]\d{1,2}|\d{1,2}[./ -]\d{1,2}[./ -]\d{4})\D*", raw) is not None


def ids(text: str) -> Iterator[Finding]:
    """National ids that python-stdnum finds valid and that a word near them announces."""
    folded, places = fold_with_places(text)
    if sum(map(str.isdigit, folded)) < 6:
        return
    for whole in CANDIDATE.finditer(folded):
        for name in _announced(folded, *whole.span()):
            for start, end in _parts(folded, *whole.span()):
                if _module(name).is_valid(folded[start:end].upper()):
                    a, b = places[start], places[end - 1] + 1
                    yield _finding("national_id", text, a, b, f"an official number ({name})", "stdnum")
                    break


def _announced(folded: str, start: int, end: int) -> Iterator[str]:
    """python-stdnum's modules of which a word stands near."""
    reach = int(spec()["near"])
    around = f"{folded[max(0, start - reach) : start]} {folded[end : end + reach]}"
    for name, near in IDS.items():
        if re.search(near, around):
            yield name


def _parts(folded: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A candidate without marks at its ends, then its parts between spaces, of six characters and more."""
    for hit in (*re.finditer(r".+", folded[start:end]), *re.finditer(r"\S+", folded[start:end])):
        core = hit.group().strip("./-")
        if len(core) >= 6:
            at = start + hit.start() + hit.group().index(core)
            yield at, at + len(core)


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"stdnum.{name}")


def keys(text: str) -> Iterator[Finding]:
    """Services' keys; nobody is asked whether they are real."""
    for plugin in _plugins():
        for secret in plugin.analyze_string(text):
            start = text.find(secret) if secret else -1
            if start >= 0:
                yield _finding("key", text, start, start + len(secret), plugin.secret_type, "detect_secrets")


@functools.cache
def _plugins() -> tuple[Any, ...]:
    made = []
    for path in PLUGINS:
        module, name = path.split(".")
        made.append(getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)())
    return tuple(made)
