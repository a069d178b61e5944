"""Holds what a guest sends to the network until its epoch is safe, and then lets it out in a burst."""

from netbuf.announce import rarp_frame
from netbuf.errors import (
    AnnounceError,
    BridgeError,
    HoldError,
    HostError,
    InterfaceNameError,
    InterfaceVanishedError,
    KernelModuleError,
    KernelRefusedError,
    LimitError,
    MacAddressError,
    NameClashError,
    NetbufError,
    OpenError,
    PrivilegeError,
    ReleaseError,
    SealError,
    SettingError,
    StateError,
    TunDeviceError,
)
from netbuf.ledger import BufferStatistics, HoldState, Pressure
from netbuf.tap import GuestTap
from netbuf.taphold import TapHold

__all__ = [
    "AnnounceError",
    "BridgeError",
    "BufferStatistics",
    "GuestTap",
    "HoldError",
    "HoldState",
    "HostError",
    "InterfaceNameError",
    "InterfaceVanishedError",
    "KernelModuleError",
    "KernelRefusedError",
    "LimitError",
    "MacAddressError",
    "NameClashError",
    "NetbufError",
    "OpenError",
    "Pressure",
    "PrivilegeError",
    "ReleaseError",
    "SealError",
    "SettingError",
    "StateError",
    "TapHold",
    "TunDeviceError",
    "rarp_frame",
]
