"""One plug qdisc and its IFB, over a netlink socket of their own.

The kernel deals with a request within the system call that sends it, so the answers are there when that
returns, and no call waits for anything but the kernel's network configuration lock.
"""

from __future__ import annotations

import errno
import socket
from typing import Protocol

from netbuf.errors import (
    HoldBrokenError,
    InterfaceVanishedError,
    KernelRefusedError,
    NetbufError,
    PrivilegeError,
)
from netbuf.plugwire import (
    ANSWER_BYTES_MAX,
    Answer,
    PassageReading,
    PlugAction,
    QueueReading,
    answers,
    change_message,
    error_text,
    number,
    passage_message,
    queue_message,
)

_SEQUENCES = 1 << 32


class Queue(Protocol):
    """What a `PlugHold` needs of the kernel's queue.

    Each call is one netlink message, each reading of the queue the state after it. All raise
    `InterfaceVanishedError` if the IFB is gone, `HoldBrokenError` if it has another qdisc now.
    """

    def buffer(self) -> QueueReading:
        """What waits now is the last epoch; what comes from now on waits behind it."""
        ...

    def release_one(self) -> QueueReading:
        """Let the last epoch out."""
        ...

    def release_all(self) -> QueueReading:
        """Let all out, and pass on what comes."""
        ...

    def waiting(self) -> QueueReading:
        """What waits in the qdisc."""
        ...

    def passage(self) -> PassageReading:
        """What has gone through the IFB."""
        ...


class PlugQueue:
    """The real one, of the interface `index` in the network namespace in which it is made."""

    def __init__(self, name: str, index: int) -> None:
        """Open the socket; `name` is for messages."""
        self._name = name
        self._buffer = change_message(index, PlugAction.BUFFER)
        self._release_one = change_message(index, PlugAction.RELEASE_ONE)
        self._release_all = change_message(index, PlugAction.RELEASE_INDEFINITE)
        self._waiting = queue_message(index)
        self._passage = passage_message(index)
        self._sequence = 0
        self._answer = bytearray(ANSWER_BYTES_MAX)
        self._view = memoryview(self._answer)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def buffer(self) -> QueueReading:
        """TCQ_PLUG_BUFFER."""
        return self._queue(self._buffer)

    def release_one(self) -> QueueReading:
        """TCQ_PLUG_RELEASE_ONE."""
        return self._queue(self._release_one)

    def release_all(self) -> QueueReading:
        """TCQ_PLUG_RELEASE_INDEFINITE."""
        return self._queue(self._release_all)

    def waiting(self) -> QueueReading:
        """The qdisc's statistics."""
        return self._queue(self._waiting)

    def passage(self) -> PassageReading:
        """The interface's statistics."""
        found = self._ask(self._passage).passage
        assert found is not None, "RTM_GETSTATS is answered by statistics"
        return found

    def check(self, name: str, index: int) -> None:
        """Raise `InterfaceVanishedError` if the other interface `name` is gone."""
        try:
            self._ask(passage_message(index))
        except InterfaceVanishedError as error:
            raise InterfaceVanishedError(f"the guest tap {name!r} is gone; end its hold") from error

    def _queue(self, message: bytearray) -> QueueReading:
        found = self._ask(message).queue
        assert found is not None, "RTM_NEWQDISC is answered by its echo"
        return found

    def _ask(self, message: bytearray) -> Answer:
        """Send, and read the answer."""
        self._sequence = (self._sequence + 1) % _SEQUENCES
        number(message, self._sequence)
        try:
            self._socket.send(message)
            while True:
                length = self._socket.recv_into(self._answer, flags=socket.MSG_DONTWAIT)
                for answer in answers(self._view[:length]):
                    if answer.sequence != self._sequence:
                        continue  # of a call that was interrupted between its question and its answer
                    if answer.error is not None:
                        raise self._refused(answer.error)
                    return answer
        except OSError as error:
            raise KernelRefusedError(
                f"asking the kernel about {self._name!r} failed: {error.strerror}; see the kernel log"
            ) from error

    def _refused(self, code: int) -> NetbufError:
        match code:
            case errno.EPERM | errno.EACCES:
                return PrivilegeError(f"changing the plug of {self._name!r} needs CAP_NET_ADMIN; grant it")
            case errno.ENODEV:
                return InterfaceVanishedError(f"the hold {self._name!r} is gone; find out who deletes it")
            case errno.ENOENT | errno.EEXIST | errno.EINVAL:
                return HoldBrokenError(
                    f"the hold {self._name!r} has no plug of ours any more; find out who changes it"
                )
            case _:
                return KernelRefusedError(
                    f"the kernel refused a change of {self._name!r}: {error_text(code)}; see the kernel log"
                )
