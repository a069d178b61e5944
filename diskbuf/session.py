"""One client from its connecting to its end: negotiation, TLS if it asks for it, and then its requests."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping

from diskbuf.buffer import DiskBuffer
from diskbuf.connection import Connection
from diskbuf.crowd import Crowd
from diskbuf.endpoint import Endpoint, PlainEndpoint, TlsEndpoint
from diskbuf.errors import ProtocolError
from diskbuf.negotiation import Negotiation, Tls
from diskbuf.wire import Export

_RECEIVE_BYTES = 4096
_TIMEOUT_S_MIN = 1e-3  # a timeout of 0 would mean something else

_log = logging.getLogger("diskbuf")


class Session:
    """Runs in one thread, and is stopped from another.

    With a `tls` context a client must use it. `negotiation_s` is the time it has to choose an export.
    """

    def __init__(
        self,
        client_socket: socket.socket,
        client: str,
        buffers: Mapping[str, DiskBuffer],
        exports: Mapping[str, Export],
        tls: ssl.SSLContext | None,
        negotiation_s: float,
        crowd: Crowd,
    ) -> None:
        self._crowd = crowd
        self._client = client
        self._buffers = buffers
        self._tls = tls
        self._negotiation_s = negotiation_s
        self._negotiation = Negotiation(exports, Tls.NONE if tls is None else Tls.REQUIRED)
        self._socket = client_socket
        self._endpoint: Endpoint = PlainEndpoint(client_socket)
        self._connection: Connection | None = None
        self._stopped = False
        self._changing = threading.Lock()  # what is to be stopped

    def run(self) -> None:
        """Serve the client until it has gone. What it does wrong ends here; our own defects don't."""
        try:
            self._negotiate()
            terms = self._negotiation.terms
            if terms is None:
                self._endpoint.say_goodbye()
            else:
                connection = Connection(
                    self._endpoint,
                    self._buffers[terms.name],
                    terms,
                    self._client,
                    self._negotiation.tail,
                    self._crowd,
                )
                with self._changing:
                    self._connection = connection
                    if self._stopped:
                        return
                connection.serve()
        except ProtocolError as error:
            _log.warning("%s disconnected: %s", self._client, error)
        except OSError as error:
            _log.info("%s left: %s", self._client, error)
        finally:
            self._endpoint.close()

    def stop(self) -> None:
        """Make `run` return soon."""
        with self._changing:
            self._stopped = True
            self._endpoint.shut_down()
            if self._connection is not None:
                self._connection.stop()

    def _negotiate(self) -> None:
        """Negotiate until the client has chosen an export or given up."""
        deadline = time.monotonic() + self._negotiation_s
        received = memoryview(bytearray(_RECEIVE_BYTES))
        replies = self._negotiation.greeting
        try:
            while True:
                self._limit_to(deadline)
                self._endpoint.send_all([replies])
                if self._negotiation.finished:
                    break
                if self._negotiation.start_tls:
                    self._start_tls(deadline)
                count = self._endpoint.receive_into(received)
                if not count:
                    break
                replies = self._negotiation.receive(bytes(received[:count]))
        except TimeoutError:
            raise ProtocolError(f"no export was chosen within {self._negotiation_s:g} s") from None
        self._endpoint.set_timeout(None)

    def _start_tls(self, deadline: float) -> None:
        assert self._tls is not None, "nobody starts TLS that isn't offered"
        with self._changing:
            wrapped = self._tls.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
            endpoint = TlsEndpoint(wrapped)
            self._endpoint = endpoint
            if self._stopped:
                endpoint.shut_down()
        self._limit_to(deadline)
        try:
            endpoint.handshake()
        except ssl.SSLError as error:
            raise ProtocolError(
                f"TLS handshake failed: {error}; compare certificates and versions"
            ) from error
        self._negotiation.tls_started()

    def _limit_to(self, deadline: float) -> None:
        self._endpoint.set_timeout(max(deadline - time.monotonic(), _TIMEOUT_S_MIN))
