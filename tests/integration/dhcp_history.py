"""The oracle of the DHCP question: what clients were told against what the survivor knows. Pure.

A guest answers from its state. If an answer got out and the state behind it died with the host, then

- the survivor's books don't have it: the number of an echo stands beside another word or isn't reached yet, a
  lease was never given; and
- the survivor, which knows no better, contradicts it: it uses a number again, or gives an address away again.
  That is what clients suffer, and it is seen in the answers alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Echoed:
    """The echo said that `word` is the `number`th that it answered, from 1."""

    number: int
    word: str


@dataclass(frozen=True, slots=True)
class Offered:
    """DHCPOFFER: nobody else has `address`."""

    mac: str
    address: str


@dataclass(frozen=True, slots=True)
class Leased:
    """DHCPACK: `address` belongs to `mac`, for longer than any test runs."""

    mac: str
    address: str


_LEASE_COLUMNS = 5  # expiry, MAC, address, host name, client identifier

Answer = Echoed | Offered | Leased


@dataclass(frozen=True, slots=True)
class Books:
    """What a guest knows: its echo's log, from the first line on, and its leases by MAC address."""

    echoes: Sequence[Echoed]
    leases: Mapping[str, str]


def read_books(echo_log: str, lease_file: str) -> Books:
    """From the text of the two files. A last line that isn't whole yet doesn't count, nor what is no lease:
    dnsmasq writes its file anew for each, and a reader may have had half of one and half of another."""
    echoes = [Echoed(int(number), word) for number, word in _rows(echo_log)]
    leases = [row for row in _rows(lease_file) if len(row) == _LEASE_COLUMNS]
    return Books(echoes, {mac: address for _, mac, address, *_ in leases})


def _rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("\n")[:-1]]


def violations(answers: Sequence[Answer], books: Books) -> list[str]:
    """All that is wrong, in words. Prerequisite: `books` were read after the last of `answers` was seen."""
    return [*_torn(books), *_unknown(answers, books), *contradictions(answers)]


def _torn(books: Books) -> Iterator[str]:
    """A log that isn't 1, 2, 3 … was put together from several states."""
    for place, echo in enumerate(books.echoes, 1):
        if echo.number != place:
            yield f"the survivor's log has {echo.number} {echo.word!r} as its line {place}"
            return


def _unknown(answers: Iterable[Answer], books: Books) -> Iterator[str]:
    logged = {echo.number: echo.word for echo in books.echoes}
    for answer in answers:
        match answer:
            case Echoed(number, word) if logged.get(number) != word:
                known = logged.get(number)
                yield f"{word!r} was told that it is number {number}; to the survivor that is {known!r}"
            case Leased(mac, address) if books.leases.get(mac) != address:
                yield f"{mac} was given {address}; to the survivor it has {books.leases.get(mac)}"
            case _:
                pass


def contradictions(answers: Iterable[Answer]) -> Iterator[str]:
    """Answers that can't both be true of one guest, in words."""
    words: dict[int, str] = {}
    owners: dict[str, str] = {}
    for answer in answers:
        match answer:
            case Echoed(number, word):
                if words.setdefault(number, word) != word:
                    yield f"{words[number]!r} and {word!r} were both told that they are number {number}"
            case Offered(mac, address):
                if owners.get(address, mac) != mac:
                    yield f"{address} was offered to {mac} when {owners[address]} had it"
            case Leased(mac, address):
                if owners.setdefault(address, mac) != mac:
                    yield f"{address} was given to {mac} when {owners[address]} had it"
