"""Failure detection by silence, over ticks of a clock that somebody else reads."""

from __future__ import annotations


class Detector:
    """Suspects a peer that has been silent for `detect_s`.

    A process that was itself not running can't testify: bytes may wait unread in its socket. So
    silence counts only from a tick that followed the one before it promptly; after a gap, the
    peer is given half of `detect_s` more to be heard, once for each time that it was.
    """

    def __init__(self, detect_s: float) -> None:
        assert detect_s > 0, f"detect_s={detect_s} must be positive"
        self._detect_s = detect_s
        self._previous_tick: float | None = None
        self._grace_until = 0.0
        self._grace_given_for: float | None = None

    @property
    def interval_s(self) -> float:
        """How often to tick: often enough that detection adds at most a tenth of `detect_s`."""
        return self._detect_s / 10

    def watch(self, now: float) -> None:
        """Begin with a new peer."""
        self._previous_tick = now
        self._grace_until = now

    def silent(self, now: float, last_heard: float) -> bool:
        """Whether the peer must be taken for dead."""
        previous, self._previous_tick = self._previous_tick, now
        late = previous is not None and now - previous > self._detect_s / 2
        if late and last_heard != self._grace_given_for:
            self._grace_given_for = last_heard
            self._grace_until = now + self._detect_s / 2
        return now >= self._grace_until and now - last_heard >= self._detect_s
