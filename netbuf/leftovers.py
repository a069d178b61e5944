"""What a killed holder may leave behind, and how the next one deals with it.

TAPs vanish with their holder and its QEMU. An IFB stays, with the frames that wait in it, and so do the
filters of a tap that another process owns. As long as they stay they let nothing out. They are removed in the
order that keeps it so: the guest tap down and out of its bridge, the IFB with all that it holds, and last the
filters.

Who holds is known by a lock: an abstract UNIX socket (unix(7)), which belongs to the network namespace as the
interfaces do, and which the kernel frees with the process however that ends.
"""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from netbuf.errors import (
    BridgeError,
    InterfaceNameError,
    InterfaceVanishedError,
    KernelRefusedError,
    NameClashError,
    NetbufError,
    TapError,
)
from netbuf.redirect import HOLD_ADDRESS, Link, Network
from netbuf.tap import GUEST_SUFFIX, TAP_HOLD_SUFFIX, checked_prefix

HOLD_SUFFIX = "i"

# Written on a tap that was taken out of its bridge, so that it can be put back.
_PORT_OF = "netbuf: port of "


class HoldLock:
    """The right to hold what the guest tap `guest` sends; freed by `close` or with the process."""

    __slots__ = ("_socket",)

    def __init__(self, guest: str) -> None:
        """Take it. Raises `NameClashError` if a living process has it."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(_lock_address(guest))
        except OSError as error:
            self._socket.close()
            if error.errno != errno.EADDRINUSE:
                raise KernelRefusedError(f"locking tap {guest!r} failed: {error.strerror}") from error
            raise NameClashError(
                f"tap {guest!r} is held by a running process already; end that one first"
            ) from error

    def close(self) -> None:
        """Free it. Idempotent."""
        self._socket.close()


def _lock_address(guest: str) -> str:
    return f"\0netbuf.hold.{guest}"


def is_locked(guest: str) -> bool:
    """Whether a living process holds what `guest` sends. Only asks: nobody is kept from taking the lock."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(_lock_address(guest))
        except ConnectionRefusedError:
            return False
        except OSError as error:
            raise KernelRefusedError(
                f"asking for the lock of tap {guest!r} failed: {error.strerror}"
            ) from error
        return True


def guests_of(hold: Link) -> tuple[str, str]:
    """The names that the guest tap of a hold's IFB may have: a `GuestTap`'s, or an attached tap's own."""
    prefix = hold.name.removesuffix(HOLD_SUFFIX)
    return prefix + GUEST_SUFFIX, prefix


def is_hold(link: Link) -> bool:
    """Whether it is an IFB that this package has made."""
    return link.kind == "ifb" and link.address == HOLD_ADDRESS


def tap_holds(network: Network) -> list[tuple[Link, Link]]:
    """The tap holds of living processes here: each guest tap, and the TAP by which it is held."""
    taps = {link.index: link for link in network.links() if link.kind == "tun"}
    return [
        (guest, taps[target])
        for guest in taps.values()
        for target in _targets(network, guest)
        if target in taps and taps[target].name in _tap_hold_names(guest.name)
    ]


def clear(network: Network, guest: str, hold: str) -> None:
    """Remove what a predecessor has left of `hold` and on `guest`, which ends down and in no bridge.

    Prerequisite: the lock of `guest`. Raises `NameClashError` for what is not a leftover of ours.
    """
    _refuse_strangers(network, guest, hold)
    network.down(guest)
    network.part(guest)
    network.delete(hold)
    network.unhook(guest)


def _refuse_strangers(network: Network, guest: str, hold: str) -> None:
    found = network.link(hold)
    if found is not None and not is_hold(found):
        raise NameClashError(f"interface {hold!r} exists already and is no hold; delete it or rename the tap")
    for other in guests_of(found) if found else ():
        if other != guest and is_locked(other):
            raise NameClashError(f"{hold!r} holds what {other!r} sends; rename the tap {guest!r}")
    index = network.index(guest)
    strangers = set(network.redirects(index)) - {0, found.index if found else 0}
    if strangers:
        raise NameClashError(
            f"{guest!r} is redirected to interface {min(strangers)}, which is no leftover; "
            f"end who redirects it, or create a new guest tap"
        )


@dataclass(frozen=True, slots=True)
class AttachedTap:
    """The tap of a QEMU that somebody else runs, taken out of its bridge; `prefix` begins our names."""

    name: str
    prefix: str
    bridge: str


def attach(network: Network, name: str, bridge: str | None) -> AttachedTap:
    """Take the tap `name` out of `bridge`, or of the one in which it is or was before a holder was killed.

    Raises `TapError`, `BridgeError`, `NameClashError`. On success the tap is down and in no bridge, as a new
    one would be.
    """
    if not name.isascii() or not (bridge or "").isascii():
        raise TapError(f"tap={name!r}, bridge={bridge!r}: a name that is not ASCII; rename the interface")
    link = network.link(name)
    if link is None:
        raise TapError(f"tap={name!r} doesn't exist; name the tap of a running guest (ip -d link)")
    if link.kind != "tun":
        raise TapError(f"tap={name!r} is an interface of kind {link.kind!r}; name one of kind 'tun'")
    if not link.address:
        raise TapError(f"tap={name!r} is a TUN without Ethernet frames; name one of mode 'tap'")
    try:
        prefix = checked_prefix(name)
    except InterfaceNameError as error:
        raise TapError(f"tap={name!r}: no hold can be named after it, so rename it: {error}") from error
    named = bridge or _bridge_of(network, link)
    if named is None:
        raise BridgeError(f"tap={name!r} is in no bridge; say in which its guest's LAN is by bridge")
    network.bridge(named)
    hold = prefix + HOLD_SUFFIX
    lock = HoldLock(name)
    try:
        _refuse_strangers(network, name, hold)
        # Before it leaves its bridge, and not if it is refused: `clean` believes what is written here.
        network.describe(name, _PORT_OF + named)
        clear(network, name, hold)
    finally:
        lock.close()
    return AttachedTap(name, prefix, named)


def clean(network: Network) -> list[str]:
    """Remove all leftovers in this network namespace; what was done, a line each.

    A tap that `attach` had taken out of its bridge goes back and passes frames unheld; one that a daemon made
    stays down. What a living process holds is left alone, and said.
    """
    lines = []
    for link in network.links():
        if is_hold(link):
            with ExitStack() as locks:
                try:
                    for guest in guests_of(link):
                        locks.callback(HoldLock(guest).close)
                except NameClashError:
                    lines.append(f"{link.name}: in use, left alone")
                    continue
                network.delete(link.name)
            lines.append(f"{link.name}: removed, with all that it held")
    for link in network.links():
        if link.kind == "tun" and _is_leftover(network, link):
            try:
                lock = HoldLock(link.name)
            except NameClashError:
                continue  # held again by now
            try:
                network.down(link.name)
                network.unhook(link.name)
                lines.append(f"{link.name}: {_put_back(network, link)}")
            except (BridgeError, InterfaceVanishedError) as error:
                lines.append(f"{link.name}: left down: {error}")
            finally:
                lock.close()
    return lines


def _is_leftover(network: Network, link: Link) -> bool:
    """A tap that nobody holds, and that was taken out of its bridge or is redirected to nowhere."""
    if is_locked(link.name):
        return False
    try:
        targets = network.redirects(link.index)
    except NetbufError:
        return False  # somebody else's filters
    if any(targets):
        return False  # where they lead is alive
    return link.alias.startswith(_PORT_OF) or bool(targets)


def _targets(network: Network, tap: Link) -> list[int]:
    """Where it is redirected to; nowhere if what it has are somebody else's filters."""
    try:
        return network.redirects(tap.index)
    except NetbufError:
        return []


def _tap_hold_names(guest: str) -> tuple[str, str]:
    """After which prefix it is named: a `GuestTap`'s, or an attached tap's own name."""
    return guest.removesuffix(GUEST_SUFFIX) + TAP_HOLD_SUFFIX, guest + TAP_HOLD_SUFFIX


def _put_back(network: Network, link: Link) -> str:
    if (named := _noted_bridge(link)) is None:
        # A daemon's own, which a plug hold had made a port: its guest may live, and nobody holds its frames.
        network.part(link.name)
        return "no longer redirected, left down"
    network.enslave(link.name, network.bridge(named))
    network.up(link.name)
    network.describe(link.name, "")  # last: by this alone the next `clean` knows of it
    return f"a port of {named} again, unheld"


def _bridge_of(network: Network, link: Link) -> str | None:
    for other in network.links() if link.master else []:
        if other.index == link.master:
            return other.name
    return _noted_bridge(link)


def _noted_bridge(link: Link) -> str | None:
    """What `attach` has written down of an attached tap; None for any other."""
    return link.alias.removeprefix(_PORT_OF) if link.alias.startswith(_PORT_OF) else None
