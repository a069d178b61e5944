"""Where a guest's frames are to wait: in the kernel if it has what that takes, else in this process."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from netbuf.errors import KernelModuleError, KernelRefusedError, LimitError, PrivilegeError
from netbuf.ledger import Backend
from netbuf.plughold import PlugHold
from netbuf.redirect import Network
from netbuf.sizing import kernel_limit_bytes
from netbuf.tap import Guest
from netbuf.taphold import TapHold

Wish = Literal["auto", "plug", "tap"]
Hold = PlugHold | TapHold

_CLONE_NEWNET = 0x4000_0000  # linux/sched.h
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend, and in a sentence why, for the log."""

    backend: Backend
    reason: str


def probe_plug() -> None:
    """Make a plug, in a network namespace that nobody sees and that is gone on return; some 50 ms.

    The kernel loads the modules that it has. Raises `KernelModuleError` by name, `PrivilegeError`.
    """
    failures: list[Exception] = []

    def probe() -> None:
        try:
            _enter_new_namespace()
            network = Network()
            try:
                network.create_hold(_PROBE, limit_bytes=kernel_limit_bytes(1))
                network.delete(_PROBE)
            finally:
                network.close()
        except Exception as error:  # a thread would keep it to itself
            failures.append(error)

    # A namespace belongs to a thread: this one's ends with it, and the caller's is never touched.
    thread = threading.Thread(target=probe, name="netbuf probe")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def choose(wish: Wish, limit_bytes: int, *, probe: Callable[[], None] = probe_plug) -> Choice:
    """The backend for `wish`; "auto" takes plug if `probe` succeeds and a plug can hold `limit_bytes`.

    Raises what `probe` does, or `LimitError`, if the wish is "plug".
    """
    if wish == "tap":
        return Choice(Backend.TAP, "asked for")
    try:
        kernel_limit_bytes(limit_bytes)
        probe()
    except (KernelModuleError, KernelRefusedError, LimitError) as error:
        if wish == "plug":
            raise
        return Choice(Backend.TAP, str(error))
    return Choice(Backend.PLUG, "asked for" if wish == "plug" else "this kernel has ifb and sch_plug")


def make_hold(
    backend: Backend, guest: Guest, bridge: str, limit_bytes: int, depth: int, *, keep_frames: bool = False
) -> Hold:
    """A closed hold of the chosen kind. A plug has a depth of 1, whatever `depth` would be wanted.

    `keep_frames`: `sealed_frames` is to be asked for what a survivor would replay.
    """
    if backend is Backend.PLUG:
        return PlugHold(guest, bridge, limit_bytes, keep_frames=keep_frames)
    return TapHold(guest, bridge, limit_bytes, depth, keep_frames=keep_frames)


def _enter_new_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        if code == errno.EPERM:
            raise PrivilegeError(
                "probing for sch_plug needs CAP_SYS_ADMIN; run as root or choose the hold 'tap'"
            )
        raise KernelRefusedError(
            f"no network namespace to probe in: {os.strerror(code)}; choose the hold 'tap', or free some"
        )
