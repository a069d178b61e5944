"""remuslike.daemon.samples: one sample an epoch, numbered, and only so many kept."""

from __future__ import annotations

import numpy as np
import pytest

from remuslike.daemon.samples import _SAMPLES_KEPT, _SAMPLES_PER_ANSWER, Samples
from remuslike.engine.ports import Capture


def finished(count: int) -> Samples:
    """With `count` finished samples, of epochs 1 and on."""
    samples = Samples()
    for epoch in range(1, count + 1):
        samples.begin(epoch)
        samples.finish(epoch, now=0.0)
    return samples


def epochs_since(samples: Samples, number: int) -> list[int]:
    return [sample["epoch"] for sample in samples.since(number)["samples"]]


def test_there_is_nothing_at_first() -> None:
    assert Samples().since(0) == {"next": 0, "samples": []}


def test_a_capture_is_noted() -> None:
    samples = Samples()
    pages = np.zeros((3, 4096), np.uint8)
    capture = Capture(np.array([1, 5, 9]), pages, b"devices", scan_ms=1.5, copy_ms=2.5, devices_ms=3.5)
    samples.begin(7).note_capture(capture, now=10.0)
    samples.finish(7, now=10.025)
    (sample,) = samples.since(0)["samples"]
    assert sample["commit_ms"] == pytest.approx(25)
    assert (sample["epoch"], sample["at"], sample["dirty_pages"], sample["raw_bytes"]) == (7, 10.0, 3, 12288)
    assert (sample["scan_ms"], sample["copy_ms"], sample["devices_ms"]) == (1.5, 2.5, 3.5)


def test_a_sample_counts_once_it_is_acknowledged() -> None:
    samples = Samples()
    sample = samples.begin(1)
    assert samples.get(1) is sample
    assert samples.since(0) == {"next": 0, "samples": []}
    samples.finish(1, now=1.0)
    assert samples.get(1) is None
    assert samples.count == 1
    assert epochs_since(samples, 0) == [1]


def test_an_acknowledgement_of_nothing_is_ignored() -> None:
    samples = finished(2)
    samples.finish(2, now=1.0)
    samples.finish(99, now=1.0)
    assert samples.count == 2


def test_a_reader_gets_each_sample_once() -> None:
    samples = finished(5)
    first = samples.since(0)
    assert [sample["epoch"] for sample in first["samples"]] == [1, 2, 3, 4, 5]
    assert samples.since(first["next"]) == {"next": 5, "samples": []}
    samples.begin(6)
    samples.finish(6, now=0.0)
    assert epochs_since(samples, first["next"]) == [6]


def test_a_reader_from_the_middle_or_the_future() -> None:
    samples = finished(5)
    assert epochs_since(samples, 3) == [4, 5]
    assert epochs_since(samples, 1000) == []


def test_what_is_outstanding_at_a_sessions_end_is_forgotten() -> None:
    samples = finished(1)
    samples.begin(2)
    samples.abandon()
    samples.finish(2, now=1.0)
    assert samples.get(2) is None
    assert epochs_since(samples, 0) == [1]


def test_the_history_is_bounded_and_keeps_its_numbers() -> None:
    samples = finished(_SAMPLES_KEPT + 10)
    assert samples.count == _SAMPLES_KEPT + 10
    assert len(epochs_since(samples, 0)) == _SAMPLES_PER_ANSWER
    assert epochs_since(samples, 0)[0] == 11
    assert samples.since(0)["next"] == 10 + _SAMPLES_PER_ANSWER
    assert epochs_since(samples, 5)[0] == 11
    assert epochs_since(samples, 12)[0] == 13
    assert epochs_since(samples, _SAMPLES_KEPT + 9) == [_SAMPLES_KEPT + 10]


def test_a_sample_whose_guest_is_still_paused_waits() -> None:
    samples = finished(2)
    paused = samples.begin(3)
    samples.finish(3, now=0.0)
    assert samples.since(0, paused) == {"next": 2, "samples": samples.since(0)["samples"][:2]}
    assert epochs_since(samples, 2) == [3]
