"""What each checkpoint cost: one sample an epoch, the last few thousand kept."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from itertools import islice, takewhile
from typing import Any

from remuslike.engine.ports import Capture

# At 40 checkpoints/s about seven minutes; a reader polls far more often.
_SAMPLES_KEPT = 16384
# An answer is made in the event loop; so many samples take some 10 ms.
_SAMPLES_PER_ANSWER = 512


@dataclass(slots=True)
class Sample:
    """One epoch's cost. `at`: time.monotonic() seconds of the capture's end; `commit_ms`: from there to the
    acknowledgement, None while it is outstanding. `raw_bytes`: its dirty pages; `wire_bytes`: what they
    were on the wire.

    The pause is stop, seal, devices or scan and copy (side by side: the longer of the two), resume, and
    `gap_ms`, which is what passed between these.
    """

    epoch: int
    at: float = 0.0
    dirty_pages: int = 0
    pause_ms: float = 0.0
    stop_ms: float = 0.0
    seal_ms: float = 0.0
    scan_ms: float = 0.0
    copy_ms: float = 0.0
    devices_ms: float = 0.0
    resume_ms: float = 0.0
    gap_ms: float = 0.0
    raw_bytes: int = 0
    wire_bytes: int = 0
    encode_ms: float = 0.0
    commit_ms: float | None = None

    def note_capture(self, capture: Capture, now: float) -> None:
        self.at = now
        self.scan_ms, self.copy_ms = capture.scan_ms, capture.copy_ms
        self.devices_ms = capture.devices_ms
        self.dirty_pages = len(capture.indices)
        self.raw_bytes = capture.pages.nbytes

    def note_pause(self, resume_ms: float, pause_ms: float) -> None:
        """It runs again, after `pause_ms` in all."""
        self.resume_ms, self.pause_ms = resume_ms, pause_ms
        beside = max(self.devices_ms, self.scan_ms + self.copy_ms)
        self.gap_ms = pause_ms - self.stop_ms - self.seal_ms - beside - resume_ms


class Samples:
    """A bounded history, numbered from 0 on."""

    def __init__(self) -> None:
        self._finished: deque[Sample] = deque(maxlen=_SAMPLES_KEPT)
        self._open: dict[int, Sample] = {}
        self.count = 0

    def begin(self, epoch: int) -> Sample:
        sample = self._open[epoch] = Sample(epoch)
        return sample

    def get(self, epoch: int) -> Sample | None:
        return self._open.get(epoch)

    def finish(self, epoch: int, now: float) -> None:
        """The acknowledgement came."""
        if sample := self._open.pop(epoch, None):
            sample.commit_ms = (now - sample.at) * 1e3
            self._finished.append(sample)
            self.count += 1

    def abandon(self) -> None:
        """The session is over: what is outstanding stays so."""
        self._open.clear()

    def since(self, number: int, paused: Sample | None = None) -> dict[str, Any]:
        """Samples from `number` on that are still kept, _SAMPLES_PER_ANSWER at most; where to go on.

        Not yet the one in whose pause the guest still is: it may be acknowledged before.
        """
        first = self.count - len(self._finished)
        begin = max(number, first)
        kept = islice(self._finished, begin - first, begin - first + _SAMPLES_PER_ANSWER)
        chosen = list(takewhile(lambda sample: sample is not paused, kept))
        return {"next": begin + len(chosen), "samples": [asdict(sample) for sample in chosen]}
