"""A person's own words: ``lexicon.txt`` in the data folder, one entry a line, which they may also edit by hand.

Nothing is guessed of a line that makes no sense: the file is named, the line too, and the file stays as it is. Two
programs that change it at once are not kept apart here; ``Popi`` does that, through the store's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from popi_edge.errors import ConfigError
from popi_edge.files import whole_file
from popi_edge.vocabulary import own_words

FILE = "lexicon.txt"
MAX_BYTES = 1 << 20


def read(home: Path) -> tuple[str, ...]:
    """The words, in order. Raises ConfigError naming the file and the line that holds something else."""
    path = home / FILE
    try:
        if not path.exists():
            return ()
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES:,} bytes; it holds no list of words")
    words: list[str] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            text = line.decode("utf-8").strip(" \t")
            if not text.isprintable():
                raise ConfigError(f"{text[:40]!r} holds a control character")
            words += own_words([text]) if text else ()
        except UnicodeDecodeError:
            raise ConfigError(f"{path}, line {number}: not UTF-8") from None
        except ConfigError as e:
            raise ConfigError(f"{path}, line {number}: {e}") from None
    return _fitting(path, words)


def as_words(given: Iterable[str]) -> tuple[str, ...]:
    """Words as a person gave them, one each. Raises ConfigError for one that is none, or more than one."""
    words: list[str] = []
    for entry in given:
        made = own_words([entry])
        if len(made) > 1 or any(c.isspace() for c in entry):
            raise ConfigError(f"own word {entry[:40]!r} has a space in it; give its words one by one")
        words += made
    return tuple(dict.fromkeys(words))


def add(home: Path, words: Iterable[str]) -> tuple[str, ...]:
    """Add words at the end; those that were not there. Raises ConfigError, and then nothing is changed."""
    before = read(home)
    new = tuple(w for w in dict.fromkeys(words) if w not in before)
    if new:
        _write(home / FILE, _fitting(home / FILE, [*before, *new]))
    return new


def remove(home: Path, words: Iterable[str]) -> tuple[str, ...]:
    """Remove words; all of them, or none. Raises ConfigError naming one that is not there."""
    before, gone = read(home), tuple(dict.fromkeys(words))
    for word in gone:
        if word not in before:
            near = [w for w in before if w.casefold() == word.casefold()]
            hint = f" (but {near[0]!r} is)" if near else ""
            raise ConfigError(f"{word!r} is not in {home / FILE}{hint}; nothing was removed")
    _write(home / FILE, tuple(w for w in before if w not in gone))
    return gone


def _fitting(path: Path, words: Iterable[str]) -> tuple[str, ...]:
    """The words, each once, if they are not too many."""
    try:
        return own_words(words)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None


def _write(path: Path, words: Iterable[str]) -> None:
    try:
        with whole_file(path) as file:
            file.write("".join(word + "\n" for word in words).encode())
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written: {e.strerror}; it is as it was") from None
