"""What can go wrong on the way to the peer.

    TransportError
    ├── LinkError                 the connection
    │   ├── ConnectError              could not be made
    │   ├── ListenError               could not be waited for
    │   ├── LinkClosed                ended in good order
    │   └── LinkBroken                ended otherwise
    ├── FrameError                the peer's framing
    │   ├── MagicError                not our protocol at all
    │   ├── VersionError              our protocol, another version
    │   ├── HeaderChecksumError       the header was damaged
    │   ├── FrameTypeError            a type that this version doesn't have
    │   ├── FrameLengthError          longer than any payload may be
    │   └── PayloadChecksumError      the payload was damaged
    ├── PagesError                the peer's page batch
    └── PayloadTooLongError       this side asked for a frame that may not exist

Wrong arguments of a caller in this program (an index array of the wrong shape) are `ValueError`: bugs stay
outside the tree, so that `except TransportError` doesn't hide them.
"""


class TransportError(Exception):
    """Base of all errors of this package; never raised itself."""


class LinkError(TransportError):
    """Base of the errors of a connection; never raised itself."""


class ConnectError(LinkError):
    """The peer's address can't be resolved or reached: the fault of configuration, network or peer."""


class ListenError(LinkError):
    """The address can't be listened on: the configuration's fault, or that of whoever holds the address."""


class LinkClosed(LinkError):  # noqa: N818 - an ending, not a fault
    """One side closed the link between two frames. Nobody's fault; nothing was cut off."""


class LinkBroken(LinkError):  # noqa: N818 - an ending, of which the fault lies elsewhere
    """The link failed, was cut within a frame, or a cancelled send spoilt its framing: the world's fault.

    How much of what was sent has reached the peer is unknown. The link is of no further use: close it.
    """


class FrameError(TransportError):
    """Base of the errors in the peer's framing: the fault of the peer, or of what damages its bytes.

    Never raised itself. There is no way back into step: the connection must end.
    """


class MagicError(FrameError):
    """The peer doesn't speak this protocol: the fault of what has connected, or of the address given."""


class VersionError(FrameError):
    """The peer speaks another version of the protocol: the operator's fault, who must update one side."""


class HeaderChecksumError(FrameError):
    """A frame's header was damaged on its way: the network's fault, or a memory fault on either host."""


class FrameTypeError(FrameError):
    """The frame is of a type that this version doesn't define: the peer's fault."""


class FrameLengthError(FrameError):
    """The frame announces a payload over the limit: the peer's fault."""


class PayloadChecksumError(FrameError):
    """A frame's payload was damaged on its way: the network's fault, or a memory fault on either host."""


class PagesError(TransportError):
    """The page batch in an undamaged frame makes no sense: the peer's fault. The connection must end."""


class PayloadTooLongError(TransportError):
    """A payload to be sent exceeds the limit: this side's fault, which must split it. Nothing was sent."""
