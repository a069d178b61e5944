"""netbuf.gatewire: the program, run by an interpreter of the few instructions that it has."""

from __future__ import annotations

import struct
import sys

import pytest

from netbuf.gatewire import (
    KEPT,
    NEVER,
    NUMBERS_BYTES,
    PASS_AFTER,
    PASSED,
    PASSED_BYTES,
    TELL_AFTER,
    map_attributes,
    program,
    program_attributes,
    ring_attributes,
)

MAP, RING = 17, 19  # the descriptors
MATCH, NEXT_FILTER = -1, 0


def run(numbers: list[int], frame_bytes: int, notices: list[int] | None = None) -> int:
    """Run the program for one frame; it changes `numbers`, and appends to `notices` what it counted before it
    notified. The value is its answer.

    Memory is a dictionary: what a register points at is a pair of a space and an offset.
    """
    code = [struct.unpack("=BBhi", instruction) for instruction in program(MAP, RING)]
    registers: dict[int, int | tuple[str, int]] = {1: ("frame", 0)}
    at = 0
    while True:
        opcode, pair, offset, value = code[at]
        low, high = pair & 15, pair >> 4
        target, source = (low, high) if sys.byteorder == "little" else (high, low)
        at += 1
        match opcode:
            case 0x18:
                assert ((source, value) == (2, MAP)) or ((source, value) == (1, RING))
                assert code[at][0] == 0
                registers[target] = ("numbers" if value == MAP else "ring", 0)
                at += 1
            case 0xBF:
                registers[target] = registers[source]
            case 0x85:
                arguments = [registers[number] for number in range(1, 5)]
                assert (value, arguments) == (130, [("ring", 0), ("numbers", 0), 8, 2])
                assert notices is not None, "nobody has asked for a notice"
                notices.append(numbers[KEPT])
                for number in range(6):
                    registers.pop(number, None)  # the kernel may use them
            case 0x79:
                assert registers[source] == ("numbers", 0)
                registers[target] = numbers[offset // 8]
            case 0x61:
                assert (registers[source], offset) == (("frame", 0), 0)
                registers[target] = frame_bytes
            case 0x5D:
                at += offset if registers[target] != registers[source] else 0
            case 0xDB:
                assert (registers[target], value, offset % 8) == (("numbers", 0), 0, 0)
                added = registers[source]
                assert isinstance(added, int)
                numbers[offset // 8] += added
            case 0xB7:
                registers[target] = value
            case 0x95:
                answer = registers[0]
                assert isinstance(answer, int)
                return answer
            case _:
                raise AssertionError(f"opcode {opcode:#x}")


def test_a_gate_that_is_never_to_pass_keeps_and_counts() -> None:
    numbers = [0, NEVER, 0, 0, NEVER]
    assert [run(numbers, 60) for _ in range(3)] == [NEXT_FILTER] * 3
    assert numbers == [3, NEVER, 0, 0, NEVER]


def test_an_open_gate_passes_and_counts_frames_and_bytes() -> None:
    numbers = [5, 5, 0, 0, NEVER]
    assert [run(numbers, size) for size in (60, 65_000)] == [MATCH] * 2
    assert numbers == [5, 5, 2, 65_060, NEVER]


def test_one_frame_kept_meanwhile_keeps_all_that_follow() -> None:
    numbers = [5, NEVER, 0, 0, NEVER]
    dealt_with = numbers[KEPT]
    run(numbers, 60)
    numbers[PASS_AFTER] = dealt_with
    assert [run(numbers, 60) for _ in range(3)] == [NEXT_FILTER] * 3
    numbers[PASS_AFTER] = numbers[KEPT]
    assert run(numbers, 60) == MATCH
    assert (numbers[KEPT], numbers[PASSED], numbers[PASSED_BYTES]) == (9, 1, 60)


def test_the_one_frame_that_is_asked_for_is_notified_after_it_is_counted() -> None:
    numbers, notices = [5, NEVER, 0, 0, NEVER], list[int]()
    run(numbers, 60, notices)
    numbers[TELL_AFTER] = 7
    assert [run(numbers, 60, notices) for _ in range(5)] == [NEXT_FILTER] * 5
    assert notices == [8]
    numbers[TELL_AFTER] = numbers[PASS_AFTER] = numbers[KEPT]
    assert run(numbers, 60, notices) == MATCH
    assert notices == [8]


def test_the_ring_is_of_whole_pages() -> None:
    assert struct.unpack("=5I", ring_attributes(4096)) == (27, 0, 0, 4096, 0)


def test_the_map_has_room_for_the_numbers_and_can_be_mapped() -> None:
    kind, key_bytes, value_bytes, elements, flags = struct.unpack("=5I", map_attributes())
    assert (kind, key_bytes, value_bytes, elements) == (2, 4, NUMBERS_BYTES, 1)
    assert flags == 1 << 10


def test_the_program_is_a_classifier() -> None:
    assert struct.unpack("=IIQQ", program_attributes(0x1000, 15, 0x2000)) == (3, 15, 0x1000, 0x2000)


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_registers_are_in_the_machines_order(byteorder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", byteorder)
    first = program(MAP, RING)[0]
    assert first[1] == (0x26 if byteorder == "little" else 0x62)  # register 6, and 2 for a map's value
