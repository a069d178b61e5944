"""The oracle of the DHCP question finds what it is there to find, and nothing in a good history."""

from __future__ import annotations

import pytest
from dhcp_history import Answer, Books, Echoed, Leased, Offered, contradictions, read_books, violations

HEN, COCK = "02:00:00:00:00:01", "02:00:00:00:00:02"
FIRST, SECOND = "10.77.16.0", "10.77.16.1"
LOG = "1 a\n2 b\n3 c\n"
LEASES = f"1700000000 {COCK} {SECOND} * *\n1700000000 {HEN} {FIRST} cock 01:{HEN}\n"
GOOD: tuple[Answer, ...] = (
    Echoed(1, "a"),
    Offered(HEN, FIRST),
    Leased(HEN, FIRST),
    # To two at once, which the server may do; only one of them is given it.
    Offered(COCK, SECOND),
    Offered("02:00:00:00:00:03", SECOND),
    Leased(COCK, SECOND),
    Echoed(3, "c"),
)


def test_the_books_are_read() -> None:
    books = read_books(LOG, LEASES)
    assert books == Books([Echoed(1, "a"), Echoed(2, "b"), Echoed(3, "c")], {HEN: FIRST, COCK: SECOND})


def test_lines_that_are_being_written_do_not_count() -> None:
    books = read_books("1 a\n2", f"*\n1700000000 {HEN} {FIRST} * *\n1700000000 {COCK} 10.77.1")
    assert books == Books([Echoed(1, "a")], {HEN: FIRST})


def test_a_guest_that_knows_more_than_its_clients_were_told_is_in_order() -> None:
    assert violations(GOOD, read_books(LOG, LEASES)) == []


@pytest.mark.parametrize("log", ["1 a\n2 b\n", "1 a\n2 b\n3 d\n", ""])
def test_an_echo_that_the_survivor_does_not_know_is_found(log: str) -> None:
    found = violations((Echoed(3, "c"),), read_books(log, LEASES))
    assert [text.partition(";")[0] for text in found] == ["'c' was told that it is number 3"]


@pytest.mark.parametrize("lease", ["", f"0 {HEN} {SECOND} * *\n", f"0 {COCK} {FIRST} * *\n"])
def test_a_lease_that_the_survivor_does_not_know_is_found(lease: str) -> None:
    found = violations((Leased(HEN, FIRST),), read_books(LOG, lease))
    assert [text.partition(";")[0] for text in found] == [f"{HEN} was given {FIRST}"]


@pytest.mark.parametrize("log", ["2 b\n", "1 a\n3 c\n", "1 a\n2 b\n2 c\n"])
def test_a_log_that_was_put_together_from_several_states_is_found(log: str) -> None:
    (found,) = violations((), read_books(log, LEASES))
    assert found.startswith("the survivor's log has")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([Echoed(3, "c"), Echoed(3, "d")], "'c' and 'd' were both told that they are number 3"),
        ([Leased(HEN, FIRST), Leased(COCK, FIRST)], f"{FIRST} was given to {COCK} when {HEN} had it"),
        ([Leased(HEN, FIRST), Offered(COCK, FIRST)], f"{FIRST} was offered to {COCK} when {HEN} had it"),
    ],
)
def test_a_contradiction_is_seen_without_any_books(answers: list[Answer], expected: str) -> None:
    assert list(contradictions(answers)) == [expected]


def test_the_same_answer_twice_is_no_contradiction() -> None:
    assert list(contradictions([*GOOD, *GOOD[:3]])) == []
