"""What clients of the synthetic guest were told, and whether that can be true. Pure.

It shares the datagrams' form with the guest and nothing else: it knows only that of what was answered nothing
may be lost, and nothing be counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from remuslike.synthetic.service import Reply, Status


@dataclass(slots=True)
class History:
    """One client's: its next number, and the counter that the answer must have."""

    client: int
    sequence: int = 0
    counter: int = 0
    acknowledged: int = 0
    findings: list[str] = field(default_factory=list)

    def begin(self, reply: Reply) -> None:
        """From the answer to READ: what was counted before this client's time."""
        self.sequence, self.counter = reply.sequence, reply.counter

    def next(self) -> int:
        """The number of the next request."""
        return self.sequence + 1

    def answer(self, reply: Reply) -> None:
        """Of the request with the next number, the first answer."""
        self.sequence += 1
        self.counter += 1
        self.acknowledged += reply.status is Status.OK
        if reply.status is not Status.OK:
            self.findings.append(f"client {self.client}: {self.sequence} was answered {reply.status.name}")
        self.compare(reply)

    def compare(self, reply: Reply) -> None:
        """An answer when nothing is under way. What was found once is not found again."""
        if reply.sequence < self.sequence or reply.counter < self.counter:
            self._find("lost", reply)
        elif reply.sequence > self.sequence or reply.counter > self.counter:
            self._find("counted twice", reply)
        self.sequence = max(self.sequence, reply.sequence)
        self.counter = reply.counter

    def _find(self, what: str, reply: Reply) -> None:
        count = abs(reply.counter - self.counter) or abs(reply.sequence - self.sequence)
        self.findings.append(
            f"client {self.client}: {count} {what}: {self.sequence} were sent and the counter must be"
            f" {self.counter}, the guest has {reply.sequence} and {reply.counter}"
        )


@dataclass(frozen=True, slots=True)
class Numbered:
    """The frames that nobody asked for: `repeated` came twice, `overtaken` for the first time but after a
    later one; a guest whose output is held lets neither happen. `missing` did not come, as frames may not."""

    received: int
    repeated: int
    overtaken: int
    missing: int

    def findings(self) -> list[str]:
        """What can't be, in words."""
        found = [(self.repeated, "came again"), (self.overtaken, "came after a later one")]
        return [f"{count} frames {what}" for count, what in found if count]


def judge_numbers(numbers: Sequence[int]) -> Numbered:
    """Of a LAN that keeps the order, in the order in which they came."""
    seen: set[int] = set()
    latest, repeated, overtaken = -1, 0, 0
    for number in numbers:
        repeated += number in seen
        overtaken += number not in seen and number < latest
        seen.add(number)
        latest = max(latest, number)
    span = latest - min(seen) + 1 if seen else 0
    return Numbered(len(numbers), repeated, overtaken, span - len(seen))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a load came to. `latencies_ms` are from a request's first datagram to its answer; `longest_ms` is
    the longest silence between two answers of all clients together."""

    acknowledged: int
    findings: tuple[str, ...]
    latencies_ms: tuple[float, ...]
    longest_ms: float

    @property
    def clean(self) -> bool:
        """Nothing acknowledged was lost or done twice."""
        return not self.findings


def judge(
    histories: Iterable[History], latencies_ms: Sequence[float], answered_at_s: Sequence[float]
) -> Verdict:
    """All of them together."""
    told = list(histories)
    moments = sorted(answered_at_s)
    silences = [later - earlier for earlier, later in pairwise(moments)]
    return Verdict(
        acknowledged=sum(history.acknowledged for history in told),
        findings=tuple(finding for history in told for finding in history.findings),
        latencies_ms=tuple(latencies_ms),
        longest_ms=max(silences, default=0.0) * 1e3,
    )
