"""remuslike.daemon.retained: what a survivor does once more."""

from __future__ import annotations

from diskbuf import Extent, SealedWrites
from remuslike.daemon.retained import RetainedOutputs


def writes(text: bytes) -> SealedWrites:
    return SealedWrites((Extent.of_data(0, text),))


def kept() -> RetainedOutputs:
    """Epochs 1 to 3, each with a write to two disks and a frame of two interfaces."""
    outputs = RetainedOutputs()
    for epoch in (1, 2, 3):
        text = b"%d" % epoch
        outputs.keep(epoch, [(0, writes(text)), (2, writes(text))], [(0, [text]), (1, [text, b"more"])])
    return outputs


def test_what_was_not_released_is_replayed_in_order() -> None:
    outputs = kept()
    outputs.forget(1)
    assert outputs.writes() == [(epoch, disk, writes(b"%d" % epoch)) for epoch in (2, 3) for disk in (0, 2)]
    assert outputs.frames() == [
        (2, 0, [b"2"]),
        (2, 1, [b"2", b"more"]),
        (3, 0, [b"3"]),
        (3, 1, [b"3", b"more"]),
    ]


def test_a_release_is_of_all_that_is_older() -> None:
    outputs = kept()
    outputs.forget(3)
    assert (len(outputs), outputs.writes(), outputs.frames()) == (0, [], [])


def test_an_epoch_that_is_released_before_it_is_applied_is_not_kept() -> None:
    outputs = kept()
    outputs.forget(4)
    outputs.forget(2)
    outputs.keep(4, [], [(0, [b"4"])])
    outputs.keep(5, [], [(0, [b"5"])])
    assert outputs.frames() == [(5, 0, [b"5"])]


def test_an_epoch_without_outputs_takes_no_place() -> None:
    outputs = RetainedOutputs()
    outputs.keep(1, [], [])
    assert len(outputs) == 0
