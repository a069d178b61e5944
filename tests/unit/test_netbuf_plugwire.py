"""netbuf.plugwire: messages byte by byte, and answers whole, cut short and lying about their lengths."""

from __future__ import annotations

import errno
import struct

import pytest

from netbuf.errors import KernelRefusedError
from netbuf.plugwire import (
    PLUG_HANDLE,
    Answer,
    PassageReading,
    PlugAction,
    QueueReading,
    answers,
    change_message,
    number,
    passage_message,
    queue_message,
)


def attribute(kind: int, value: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((4 + len(value) + 3) & ~3, b"\0")


def message(kind: int, body: bytes, sequence: int = 7) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 4242) + body


QDISC = message(
    36,
    struct.pack("=BBHiIII", 0, 0, 0, 5, PLUG_HANDLE, 0xFFFFFFFF, 1)
    + attribute(1, b"plug\0")
    + attribute(
        7 | 0x8000,
        attribute(1, struct.pack("=QI", 999, 9)) + attribute(3, struct.pack("=IIIII", 3, 180, 2, 0, 0)),
    ),
)
LINK = message(
    92,
    struct.pack("=BBHII", 0, 0, 0, 5, 1)
    + attribute(1, struct.pack("=24Q", 11, 10, 1100, 1000, 0, 0, 1, 2, *range(16))),
)
DONE = message(2, struct.pack("=i", 0) + bytes(16))
GONE = message(2, struct.pack("=i", -errno.ENODEV) + bytes(16))


def test_a_change_names_the_qdisc_by_kind_and_handle_and_wants_an_echo() -> None:
    made = change_message(5, PlugAction.RELEASE_ONE)
    length, kind, flags, sequence, port = struct.unpack_from("=IHHII", made)
    assert (length, kind, flags, sequence, port) == (len(made), 36, 1 | 8, 0, 0)
    assert struct.unpack_from("=BBHiIII", made, 16) == (0, 0, 0, 5, PLUG_HANDLE, 0xFFFFFFFF, 0)
    assert made[36:] == attribute(1, b"plug\0") + attribute(2, struct.pack("=iI", 1, 0))


def test_actions_have_the_numbers_of_the_kernel() -> None:
    assert list(PlugAction) == [0, 1, 2]


def test_questions_have_the_types_of_the_kernel() -> None:
    assert struct.unpack_from("=IHH", queue_message(5)) == (36, 38, 1 | 8)
    made = passage_message(5)
    assert struct.unpack_from("=IHH", made) == (28, 94, 1)
    assert struct.unpack_from("=BBHII", made, 16) == (0, 0, 0, 5, 1)


def test_a_number_is_all_that_changes() -> None:
    made = change_message(5, PlugAction.BUFFER)
    before = bytes(made)
    number(made, 0xFFFFFFFF)
    assert (made[:8], made[8:12], made[12:]) == (before[:8], b"\xff" * 4, before[12:])


def test_readings_are_found_among_the_attributes() -> None:
    assert list(answers(QDISC)) == [Answer(7, queue=QueueReading(3, 180, 2))]
    assert list(answers(LINK)) == [Answer(7, passage=PassageReading(11, 11, 1000, 3))]


def test_an_error_is_a_number() -> None:
    assert [answer.error for answer in answers(GONE + DONE)] == [errno.ENODEV, 0]


def test_several_messages_in_one_datagram_and_others_among_them() -> None:
    stranger = message(16, b"whatever")
    assert [bool(answer.queue) for answer in answers(QDISC + stranger + DONE)] == [True, False]
    assert list(answers(b"")) == []


@pytest.mark.parametrize("whole", [QDISC, LINK, DONE], ids=["qdisc", "link", "done"])
def test_whatever_is_cut_off_is_one_named_error(whole: bytes) -> None:
    for length in range(1, len(whole)):
        with pytest.raises(KernelRefusedError, match="answer about the plug has"):
            list(answers(whole[:length]))


@pytest.mark.parametrize("length", [0, 1, 15, 0xFFFFFFFF])
def test_a_length_that_lies_is_one_named_error(length: int) -> None:
    with pytest.raises(KernelRefusedError, match=f"a message of {length} bytes"):
        list(answers(struct.pack("=I", length) + DONE[4:]))


@pytest.mark.parametrize("length", [0, 3, 0xFFFF])
def test_an_attribute_that_lies_is_one_named_error(length: int) -> None:
    body = struct.pack("=BBHiIII", 0, 0, 0, 5, PLUG_HANDLE, 0, 1) + struct.pack("=HH", length, 1)
    with pytest.raises(KernelRefusedError, match=f"an attribute of {length} bytes"):
        list(answers(message(36, body)))


def test_a_missing_reading_is_one_named_error() -> None:
    with pytest.raises(KernelRefusedError, match="no attribute 7"):
        list(answers(message(36, bytes(20))))
