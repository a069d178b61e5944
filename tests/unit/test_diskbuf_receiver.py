"""Requests out of the read-ahead buffer: whose memory their payloads are in."""

from __future__ import annotations

import struct

from diskbuf.arena import SLAB_BYTES_MIN, Arena
from diskbuf.receiver import READ_AHEAD_BYTES, Receiver
from diskbuf.wire import REQUEST_BYTES, REQUEST_MAGIC, Command

HEADER = bytes(range(REQUEST_BYTES))
SHORT_BYTES = 4096
ROUNDS = 3 * READ_AHEAD_BYTES // SHORT_BYTES


class Feed:
    """A client that has sent everything already; a call takes at most `at_once` bytes of it."""

    def __init__(self, data: bytes, at_once: int) -> None:
        self._data = data
        self._at_once = at_once

    def receive_into(self, target: memoryview) -> int:
        count = min(len(target), self._at_once, len(self._data))
        target[:count], self._data = self._data[:count], self._data[count:]
        return count

    def receive_exactly(self, target: memoryview) -> int:
        done = 0
        while done < len(target) and (received := self.receive_into(target[done:])):
            done += received
        return done

    def send_all(self, parts: object) -> None:
        raise AssertionError("nobody sends")

    set_timeout = send_all

    def shut_down(self) -> None: ...
    def close(self) -> None: ...


def payload(number: int, length: int) -> bytes:
    return number.to_bytes(4, "big") * (length // 4)


def receive_all(receiver: Receiver, lengths: list[int]) -> list[memoryview]:
    """The payloads of writes of these lengths; each header is checked."""
    payloads = []
    for length in lengths:
        while (header := receiver.header()) is None:
            assert receiver.fill()
        assert header == HEADER
        del header
        payloads.append(receiver.payload(length))
    return payloads


def sent(lengths: list[int]) -> bytes:
    return b"".join(HEADER + payload(number, length) for number, length in enumerate(lengths))


def check(lengths: list[int], arena: Arena, at_once: int, tail_bytes: int = 0) -> list[memoryview]:
    data = sent(lengths)
    receiver = Receiver(Feed(data[tail_bytes:], at_once), arena, data[:tail_bytes])
    payloads = receive_all(receiver, lengths)
    assert not receiver.fill(), "nothing is left"
    for number, (view, length) in enumerate(zip(payloads, lengths, strict=True)):
        assert view == payload(number, length), number
    return payloads


def test_short_payloads_share_slabs_and_stay_what_they_are() -> None:
    arena = Arena(4 << 20)
    payloads = check([SHORT_BYTES] * ROUNDS, arena, at_once=50_000, tail_bytes=1000)
    assert len({id(view.obj) for view in payloads}) < ROUNDS / 10
    assert arena.slab_bytes >= ROUNDS * SHORT_BYTES


def test_one_slab_is_enough_where_nothing_is_kept() -> None:
    arena = Arena(4 << 20)
    lengths = [SHORT_BYTES] * ROUNDS
    receiver = Receiver(Feed(sent(lengths), 50_000), arena, b"")
    for length in lengths:
        receive_all(receiver, [length])
    assert arena.slab_bytes == READ_AHEAD_BYTES


def test_without_slabs_payloads_have_memory_of_their_own() -> None:
    payloads = check([SHORT_BYTES] * ROUNDS, Arena(1), at_once=50_000)
    assert len({id(view.obj) for view in payloads}) == ROUNDS


def test_the_arena_is_asked_again_when_it_was_exhausted() -> None:
    arena = Arena(READ_AHEAD_BYTES)
    taken = arena.take(READ_AHEAD_BYTES)
    lengths = [SHORT_BYTES] * ROUNDS
    receiver = Receiver(Feed(sent(lengths), 50_000), arena, b"")
    first = receive_all(receiver, lengths[: ROUNDS // 2])
    assert all(len(memoryview(view.obj)) == SHORT_BYTES for view in first)
    del taken
    rest = receive_all(receiver, lengths[ROUNDS // 2 :])
    assert any(len(memoryview(view.obj)) == READ_AHEAD_BYTES for view in rest)
    assert [*first, *rest] == [payload(number, SHORT_BYTES) for number in range(ROUNDS)]


def test_short_writes_come_together_without_a_copy_if_the_arena_has_room() -> None:
    count = 100_000 // SHORT_BYTES
    writes = b"".join(
        struct.pack(">IHHQQI", REQUEST_MAGIC, 0, Command.WRITE, number, 0, SHORT_BYTES)
        + payload(number, SHORT_BYTES)
        for number in range(ROUNDS)
    )
    for arena in (Arena(4 << 20), Arena(1)):
        receiver = Receiver(Feed(writes, 100_000), arena, b"")
        assert receiver.short_writes() == ([], [])
        payloads: list[memoryview] = []
        together = []
        while receiver.fill():
            requests, some = receiver.short_writes()
            assert len(requests) == len(some)
            together.append(len(some))
            payloads += some
            while receiver.header() is not None:  # what is behind them isn't whole
                payloads.append(receiver.payload(SHORT_BYTES))
        assert payloads == [payload(number, SHORT_BYTES) for number in range(ROUNDS)]
        assert max(together) == count
        shared = len({id(view.obj) for view in payloads}) < ROUNDS
        assert shared == (arena.slab_bytes > 0)


def test_long_and_short_ones_in_turns_whatever_comes_at_once() -> None:
    lengths = [4, SLAB_BYTES_MIN, SHORT_BYTES, SLAB_BYTES_MIN - 4, 300_000, 300_000, 8] * 3
    for limit_bytes in (1, 1 << 20, 64 << 20):
        for at_once in (1000, 70_001, 1 << 20):
            check(lengths, Arena(limit_bytes), at_once)
