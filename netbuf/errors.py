"""What can go wrong while a guest's frames are held.

    NetbufError
    ├── StateError                   a call came out of order
    │   ├── HoldError                    hold()
    │   ├── SealError                    seal()
    │   ├── ReleaseError                 release()
    │   ├── OpenError                    open()
    │   ├── AnnounceError                announce(), replay()
    │   └── SealedFramesError            sealed_frames()
    ├── SettingError                 a name or number can't be used
    │   ├── InterfaceNameError           no name for an interface
    │   ├── TapError                     no such tap
    │   ├── NameClashError               the interface exists already
    │   ├── BridgeError                  no such bridge
    │   ├── LimitError                   a limit that holds nothing
    │   └── MacAddressError              no MAC address
    ├── HostError                    this machine can't do it
    │   ├── PrivilegeError               no CAP_NET_ADMIN
    │   ├── TunDeviceError               no /dev/net/tun
    │   ├── KernelModuleError            a kernel module is missing
    │   └── KernelRefusedError           the kernel refused for another reason
    └── BrokenError                  somebody else took a hold apart
        ├── InterfaceVanishedError       an interface of ours was deleted
        └── HoldBrokenError              the kernel's queue is not as we left it

None of them ever lets a frame out: after each, output is as closed as it was before.
"""


class NetbufError(Exception):
    """Base of all errors of this package; never raised itself."""


class StateError(NetbufError):
    """Base of the calls that came out of order: the caller's fault, and nothing has changed.

    Never raised itself.
    """


class HoldError(StateError):
    """`hold` in a state or for an epoch that doesn't allow it: the caller's fault."""


class SealError(StateError):
    """`seal` of an epoch that isn't open, or beyond the depth: the caller's fault."""


class ReleaseError(StateError):
    """`release` of an epoch that isn't the oldest sealed one: the caller's fault.

    Also ends a release during which the buffer was discarded; the rest has not left and never will.
    """


class OpenError(StateError):
    """`open` of a discarded buffer: the caller's fault."""


class AnnounceError(StateError):
    """`announce` or `replay` of a buffer not opened yet, or of what is no frame: the caller's fault."""


class SealedFramesError(StateError):
    """`sealed_frames` of an epoch that isn't sealed, or of a hold that keeps none: the caller's fault."""


class SettingError(NetbufError):
    """Base of the settings that can't be used: the configuration's fault. Never raised itself."""


class InterfaceNameError(SettingError):
    """The name can't name our interfaces: the configuration's fault."""


class TapError(SettingError):
    """The interface that should be the guest's tap is missing or none: the caller's fault."""


class NameClashError(SettingError):
    """An interface of that name, or a filter on it, exists: the configuration's fault, or a leftover's."""


class BridgeError(SettingError):
    """The interface that should be the bridge is missing or none: the configuration's fault."""


class LimitError(SettingError):
    """A limit or depth under which nothing could be held: the configuration's fault."""


class MacAddressError(SettingError):
    """Not the MAC address of a station: the configuration's fault."""


class HostError(NetbufError):
    """Base of what this machine can't do: the fault of its set-up. Never raised itself."""


class PrivilegeError(HostError):
    """The process may not administer the network: the fault of whoever started it."""


class TunDeviceError(HostError):
    """/dev/net/tun is missing or no TUN device: the machine's fault."""


class KernelModuleError(HostError):
    """The kernel lacks a module that the hold is made of: the machine's fault."""


class KernelRefusedError(HostError):
    """The kernel refused a step of the set-up for a reason that we don't foresee: the machine's fault."""


class BrokenError(NetbufError):
    """Base of the holds that somebody else took apart: that one's fault. Never raised itself.

    The buffer is of no further use; the guest's frames are dropped from now on.
    """


class InterfaceVanishedError(BrokenError):
    """An interface of ours is gone: the fault of whoever deleted it.

    What a tap hold holds stays held; what a plug holds goes with its interface, and leaves neither.
    """


class HoldBrokenError(BrokenError):
    """The plug was replaced, emptied or unplugged behind our back: the fault of whoever did it.

    What the kernel would let out next is unknown, so the hold has been cut, and what it held is dropped.
    """
