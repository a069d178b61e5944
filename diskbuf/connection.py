"""One NBD client in the transmission phase, served by threads of its own.

The thread that calls `serve` receives all requests. It answers those that need no wait itself, in the order
they came, many per system call; short writes that came together are admitted together. The others go to
workers and are answered when they are done, as the specification allows ("Ordering of messages and writes"):
changes that wait for room have one worker, for they wait for the same; what waits for the store has several,
so that a disk's queue is kept busy.

With other clients beside it, the thread leaves its part to whoever leads the `crowd`, as long as nothing has
to be waited for: a long payload, room for a reply, or some of what is in flight.

Invariants:
1. a request that was given to a worker counts as in flight until its reply is with the kernel: at most
   `IN_FLIGHT_MAX`, and less than `IN_FLIGHT_BYTES_MAX` bytes before the last of them;
2. replies of the receiving thread leave before it waits for anything;
3. who leads the crowd does all that the receiving thread does, while that sleeps, and never waits.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext

from diskbuf.answers import Answers
from diskbuf.arena import SLAB_BYTES_MIN
from diskbuf.buffer import DiskBuffer
from diskbuf.crowd import Crowd
from diskbuf.endpoint import Endpoint, PlainEndpoint
from diskbuf.errors import DiskbufError, ProtocolError, RequestError
from diskbuf.extents import Bytes, Extent, Kind
from diskbuf.gate import Admission
from diskbuf.receiver import READ_AHEAD_BYTES, Receiver
from diskbuf.wire import (
    PAYLOAD_BYTES_MAX,
    Command,
    CommandFlag,
    NbdError,
    Request,
    Terms,
    decode_request,
    encode_replies,
    encode_reply,
    validate_request,
)
from diskbuf.workers import Workers

IN_FLIGHT_MAX = 128
"""Twice the deepest queue that common clients have (libnbd's and fio's 64), so that it never stalls them."""
IN_FLIGHT_BYTES_MAX = PAYLOAD_BYTES_MAX
"""One longest payload before the next request is taken: at most two of them per connection."""

_STORE_THREADS = 8
"""Store operations of one client at a time: as `buffer.DiskBuffer` allows itself."""
_GATHER_BYTES = 256 << 10
"""Replies of this size are sent before the next request is looked at: the client takes them meanwhile."""
_GATHER_MAX = 16
"""... and so are this many of them."""
_ALONE_FOR = 64
"""After a long payload, how many requests are received without the crowd: more of them are likely, and a
thread is better at them."""

# Plain integers: an IntEnum's members are several times slower to compare and to hash.
_READ = int(Command.READ)
_WRITE = int(Command.WRITE)
_DISC = int(Command.DISC)
_FLUSH = int(Command.FLUSH)
_CACHE = int(Command.CACHE)
_DATA = Kind.DATA
_FAST_ZERO = int(CommandFlag.FAST_ZERO)
_FUA = int(CommandFlag.FUA)
_CHANGING = frozenset((int(Command.TRIM), int(Command.WRITE_ZEROES)))


class Connection:
    """Serves one client out of `buffer` until it leaves, on `terms` that were negotiated; `tail` is what it
    has sent since."""

    def __init__(
        self,
        endpoint: Endpoint,
        buffer: DiskBuffer,
        terms: Terms,
        client: str,
        tail: bytes,
        crowd: Crowd | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._crowd = crowd if crowd is not None and isinstance(endpoint, PlainEndpoint) else None
        self._alone_for = 0  # so many times more, this thread receives whoever else is there
        self._terms = terms
        self._answers = Answers(terms, client)
        self._buffer = buffer
        self._listener = buffer.passing.listener()
        self._receiver = Receiver(endpoint, buffer.arena, tail)
        self._replies: list[Bytes] = []
        self._replied = self._replied_bytes = 0
        self._sending = threading.Lock()
        self._sending_on = False  # the leader has sent a part of the replies, and keeps the lock for the rest
        self._room = Workers(1, "room")
        self._store = Workers(_STORE_THREADS, "store")
        self._flight = threading.Condition()
        self._in_flight = self._in_flight_bytes = 0
        self._stalled = False
        self._stopped = False
        self._defect: BaseException | None = None

    def serve(self) -> None:
        """Return when the client has said goodbye and all it asked for is answered, or when it hung up, or
        after `stop`.

        Raises `ProtocolError` if its bytes aren't NBD, OSError if the socket breaks by itself. No thread is
        left.
        """
        try:
            with nullcontext() if self._crowd is None else self._crowd.presence():
                left = self._receive_requests()
            if left:
                self._await_flight(1, 1)
                self._endpoint.say_goodbye()
        except OSError:
            if not self._stopped:
                raise
        finally:
            self.stop()
            if self._sending_on:
                self._sending_on = False
                self._sending.release()  # a worker that waits for its turn finds the socket shut
            self._room.join()
            self._store.join()
        if self._defect is not None:
            raise self._defect

    def stop(self) -> None:
        """End it soon, from any thread. A change that waits has not happened."""
        with self._flight:
            self._stopped = True
            self._flight.notify_all()
        self._endpoint.shut_down()
        self._buffer.wake()

    @property
    def in_flight(self) -> int:
        """How many requests workers have, or will have, to answer."""
        return self._in_flight

    @property
    def stalled(self) -> bool:
        """Whether no request is taken until some of those in flight are answered."""
        return self._stalled

    # --- the receiving thread -----------------------------------------------------------------------

    def _receive_requests(self) -> bool:
        """Take requests until the client says goodbye (True) or hangs up (False)."""
        while True:
            writes, payloads = self._receiver.short_writes()
            if writes:
                self._answer_writes(writes, payloads)
            del writes, payloads  # views, that would keep their slab from being used again
            header = self._receiver.header()
            if header is None:
                self._send_replies()
                if self._crowd is not None and self._crowd.crowded and not self._alone_for:
                    self._join(self._crowd)
                    continue
                self._alone_for = max(self._alone_for - 1, 0)
                if not self._receiver.fill():
                    return False
                continue
            request = decode_request(header)
            del header  # a view, that would keep its slab from being used again
            if request.command == _DISC:
                self._send_replies()
                return True
            self._take(request)
            if self._has_gathered:
                self._send_replies()

    def _join(self, crowd: Crowd) -> None:
        """Sleep until there is something for this thread."""
        assert isinstance(self._endpoint, PlainEndpoint)
        self._alone_for = 1  # at least: whatever it is is found by receiving
        try:
            crowd.serve(self, self._endpoint.fileno())
        except OSError:
            self._crowd = None  # its own thread serves it as well, if more slowly

    def serve_ready(self) -> bool:
        """See `crowd.Member`. In the leader's thread."""
        assert isinstance(self._endpoint, PlainEndpoint)
        try:
            return (
                self._receiver.fill_now(self._endpoint)
                and self._take_ready(self._endpoint)
                and self._send_now(self._endpoint)
            )
        except (OSError, ProtocolError):
            return False  # the receiving thread finds it again
        except BaseException as defect:
            self._defect = defect
            self.stop()
            return False

    def _take_ready(self, endpoint: PlainEndpoint) -> bool:
        """Take the requests that are there; False at the first that may have to be waited for."""
        while True:
            count_max = IN_FLIGHT_MAX - self._in_flight
            if count_max <= 0 or self._in_flight_bytes + READ_AHEAD_BYTES > IN_FLIGHT_BYTES_MAX:
                return False
            writes, payloads = self._receiver.short_writes(count_max)
            if writes:
                self._answer_writes(writes, payloads)
                continue
            header = self._receiver.next_header()
            if header is None:
                return True
            request = decode_request(header)
            del header  # a view, that would keep its slab from being used again
            if request.command == _WRITE:
                # The rest of a short one comes soon; what else there may be is the receiving thread's.
                return request.length < SLAB_BYTES_MIN
            if request.command == _DISC:
                return False
            self._receiver.header()
            self._take(request)
            if self._has_gathered and not self._send_now(endpoint):
                return False

    @property
    def _has_gathered(self) -> bool:
        return self._replied_bytes >= _GATHER_BYTES or self._replied >= _GATHER_MAX

    def _send_now(self, endpoint: PlainEndpoint) -> bool:
        """Send the replies; False if something is left, for which there is no room."""
        if not self._replies:
            return True
        if not self._sending.acquire(blocking=False):
            return False
        try:
            self._replies = endpoint.send_now(self._replies)
            self._sending_on = bool(self._replies)  # nobody else's reply may get in between
        finally:
            if not self._sending_on:
                self._sending.release()
        self._replied = self._replied_bytes = 0
        return not self._sending_on

    def _answer_writes(self, requests: list[Request], payloads: list[memoryview]) -> None:
        """Answer short writes that came together now, or have them answered."""
        valid: list[Request] = []
        changes: list[Extent] = []
        for request, payload in zip(requests, payloads, strict=True):
            try:
                validate_request(request, self._terms)
            except RequestError as error:
                self._answer_changes(valid, changes)
                valid, changes = [], []
                self._reply(self._answers.refusal(request, error))
            else:
                valid.append(request)
                changes.append(Extent(request.offset, request.length, _DATA, payload))
        self._answer_changes(valid, changes)

    def _answer_changes(self, valid: list[Request], changes: list[Extent]) -> None:
        """Make what valid requests ask for, or have it made, and reply."""
        while changes:
            try:
                count, admission = self._buffer.try_changes(changes)
            except DiskbufError as error:
                for request in valid:
                    self._reply(self._answers.refusal(request, error))
                return
            if count:
                self._replies.append(encode_replies([request.cookie for request in valid[:count]]))
                self._replied += count
            else:
                workers = self._room if admission is Admission.WAITS else self._store
                self._answer_later(workers, valid[0], changes[0])
                count = 1
            valid, changes = valid[count:], changes[count:]

    def _take(self, request: Request) -> None:
        """Receive the request's payload, and answer it now or have it answered."""
        try:
            validate_request(request, self._terms)
        except RequestError as error:
            if request.payload_bytes:
                self._send_replies()  # it may be long in coming
                self._receiver.drain(request.payload_bytes)
            self._reply(self._answers.refusal(request, error))
            return
        if request.command == _WRITE:
            if request.length >= SLAB_BYTES_MIN:
                self._take_long_write(request)
            else:
                self._answer_changes([request], [self._change(request.offset, request.length)])
            return
        try:
            self._answer(request)
        except DiskbufError as error:
            self._reply(self._answers.refusal(request, error))

    def _take_long_write(self, request: Request) -> None:
        """Receive a long payload to where it belongs, if that is this process's memory and need not wait."""
        _, _, cookie, offset, length = request
        self._alone_for = _ALONE_FOR
        if self._receiver.waits_for(length):
            self._send_replies()
        begun: Bytes = b""
        if (passing := self._buffer.passing.begin(offset, length)) is not None:
            received = 0
            try:
                received = self._receiver.payload_soon(passing.data)
            finally:
                done = self._buffer.passing.end(passing, received)
            if done:
                self._reply([encode_reply(cookie)])
                return
            # It takes long, or an epoch has begun: then all of it is made as any other, once it is here.
            begun = passing.data[:received]
        payload = self._receiver.payload(length, begun)
        self._answer_changes([request], [Extent(offset, length, _DATA, payload)])

    def _change(self, offset: int, length: int) -> Extent:
        """Receive the payload of a write."""
        if self._receiver.waits_for(length):
            self._send_replies()
        return Extent(offset, length, _DATA, self._receiver.payload(length))

    def _answer(self, request: Request) -> None:
        """Reply now, or have a worker do it."""
        command = request.command
        if command == _READ:
            data = self._buffer.try_read(request.offset, request.length, holes=self._terms.structured_replies)
            if data is None:
                self._answer_later(self._store, request, None)
            else:
                self._reply_data(request, data)
        elif command in _CHANGING:
            self._answer_zeroing(request)
        elif command == _CACHE or (command == _FLUSH and not self._buffer.sync_waits(self._listener)):
            if command == _FLUSH:
                self._buffer.note_flush()
            self._reply([encode_reply(request.cookie)])
        else:
            self._answer_later(self._store, request, None)

    def _answer_zeroing(self, request: Request) -> None:
        """A trim reads as zeros: both sides must agree on what is there."""
        if request.flags & _FAST_ZERO and not self._buffer.zeroes_fast:
            error = RequestError(NbdError.ENOTSUP, "the store may have to write the zeros")
            self._reply(self._answers.refusal(request, error))
            return
        keep = request.command == Command.WRITE_ZEROES and request.flags & CommandFlag.NO_HOLE
        kind = Kind.ZERO if keep else Kind.HOLE
        self._answer_changes([request], [Extent(request.offset, request.length, kind)])

    def _reply_data(self, request: Request, data: Bytes) -> None:
        self._replies += self._answers.data(request, data)
        self._replied += 1
        self._replied_bytes += len(data)

    def _reply(self, parts: list[Bytes]) -> None:
        self._replies += parts
        self._replied += 1

    def _send_replies(self) -> None:
        if self._replies:
            replies, self._replies = self._replies, []
            self._replied = self._replied_bytes = 0
            if not self._sending_on:
                self._sending.acquire()
            self._sending_on = False
            try:
                self._endpoint.send_all(replies)
            finally:
                self._sending.release()

    # --- what waits ---------------------------------------------------------------------------------

    def _answer_later(self, workers: Workers, request: Request, change: Extent | None) -> None:
        """Have the request answered by a worker, once not too many are in flight."""
        if self._in_flight >= IN_FLIGHT_MAX or self._in_flight_bytes >= IN_FLIGHT_BYTES_MAX:
            self._send_replies()
            self._await_flight(IN_FLIGHT_MAX, IN_FLIGHT_BYTES_MAX)
        with self._flight:
            self._in_flight += 1
            self._in_flight_bytes += _cost_bytes(request)
        workers.put(lambda: self._work(request, change))

    def _await_flight(self, count: int, length: int) -> None:
        """Wait until fewer requests than `count` and fewer bytes than `length` are in flight."""
        with self._flight:
            while not self._stopped and (self._in_flight >= count or self._in_flight_bytes >= length):
                self._stalled = True
                self._flight.wait()
            self._stalled = False

    def _work(self, request: Request, change: Extent | None) -> None:
        """Answer a request that has to wait. In a worker."""
        try:
            self._work_and_send(request, change)
        except OSError:
            self.stop()  # the client has gone
        except BaseException as defect:
            self._defect = defect
            self.stop()
        finally:
            with self._flight:
                self._in_flight -= 1
                self._in_flight_bytes -= _cost_bytes(request)
                self._flight.notify_all()

    def _work_and_send(self, request: Request, change: Extent | None) -> None:
        if self._stopped:
            return
        try:
            parts, failure = self._work_on(request, change), None
        except DiskbufError as error:
            parts, failure = self._answers.refusal(request, error), error
        if parts:
            with self._sending:
                self._endpoint.send_all(parts)
        if failure is not None:
            self._buffer.passing.told(failure)

    def _work_on(self, request: Request, change: Extent | None) -> list[Bytes]:
        """The reply; none if the client has gone before its change has happened."""
        command = request.command
        if command == _READ:
            return self._answers.data(request, self._buffer.read(request.offset, request.length))
        if command == Command.BLOCK_STATUS:
            allocations = self._buffer.allocation(request.offset, request.length)
            return self._answers.block_status(request, allocations)
        if change is not None and not self._buffer.change(change, self._is_stopped):
            return []
        if command == _FLUSH or request.flags & _FUA:
            self._buffer.sync(self._listener)
        return [encode_reply(request.cookie)]

    def _is_stopped(self) -> bool:
        return self._stopped


def _cost_bytes(request: Request) -> int:
    """What a request in flight makes the server remember, in either direction."""
    return request.length if request.command in (_READ, _WRITE) else 0
