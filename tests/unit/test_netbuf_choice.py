"""netbuf.choice: what is taken for each wish, and what is said about it."""

from __future__ import annotations

import errno

import pytest

from netbuf.choice import choose, probe_plug
from netbuf.errors import KernelModuleError, LimitError, PrivilegeError
from netbuf.ledger import Backend

LIMIT_BYTES = 1 << 20
PLUGS_CANT_BYTES = 1 << 32


def has_plug() -> None:
    pass


def lacks_plug() -> None:
    raise KernelModuleError("plugging 'probe': this kernel has no sch_plug; install the modules")


def lacks_privilege() -> None:
    raise PrivilegeError("probing for sch_plug needs CAP_SYS_ADMIN; run as root or choose the hold 'tap'")


def never_asked() -> None:
    raise AssertionError


def test_auto_takes_the_plug_where_the_kernel_has_it() -> None:
    choice = choose("auto", LIMIT_BYTES, probe=has_plug)
    assert (choice.backend, choice.reason) == (Backend.PLUG, "this kernel has ifb and sch_plug")


def test_auto_takes_the_tap_elsewhere_and_says_what_is_missing() -> None:
    choice = choose("auto", LIMIT_BYTES, probe=lacks_plug)
    assert choice.backend is Backend.TAP
    assert "no sch_plug" in choice.reason


def test_what_nobody_foresaw_is_no_plug(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_descriptors() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("netbuf.choice._enter_new_namespace", out_of_descriptors)
    with pytest.raises(OSError, match="Too many"):
        choose("auto", LIMIT_BYTES, probe=probe_plug)


def test_auto_does_not_hide_a_missing_privilege() -> None:
    with pytest.raises(PrivilegeError):
        choose("auto", LIMIT_BYTES, probe=lacks_privilege)


def test_the_plug_is_not_replaced_where_it_is_asked_for() -> None:
    assert choose("plug", LIMIT_BYTES, probe=has_plug).backend is Backend.PLUG
    with pytest.raises(KernelModuleError, match="sch_plug"):
        choose("plug", LIMIT_BYTES, probe=lacks_plug)


def test_the_tap_needs_no_probe() -> None:
    assert choose("tap", LIMIT_BYTES, probe=never_asked).backend is Backend.TAP


def test_a_limit_beyond_what_a_plug_counts_is_the_taps() -> None:
    assert choose("tap", PLUGS_CANT_BYTES, probe=never_asked).backend is Backend.TAP
    choice = choose("auto", PLUGS_CANT_BYTES, probe=never_asked)
    assert choice.backend is Backend.TAP
    assert f"limit_bytes={PLUGS_CANT_BYTES}" in choice.reason
    with pytest.raises(LimitError, match="a plug holds at most"):
        choose("plug", PLUGS_CANT_BYTES, probe=never_asked)
