"""NBD servers of others, started for a test: nbdkit and qemu-nbd, on a socket that the test listens on.

The socket is handed over as systemd does it (sd_listen_fds(3)). So a client can connect at once, without a
wait for the server; and while a server is dead, clients wait for the next one, as behind a service manager.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

STOP_S = 10

# LISTEN_PID must name the server itself, and the socket be descriptor 3. (Not dash: it knows one-digit ones.)
_ACTIVATE = 'exec 3<&"$1"; shift; exec env LISTEN_FDS=1 LISTEN_PID=$$ "$@"'


class NbdServer:
    """`command` serves on a unix socket at `path`, or on a TCP port of loopback without one.

    `kill()` and `start()` it at will; close it in the end.
    """

    def __init__(self, path: Path | None, *command: str | Path) -> None:
        if shutil.which(str(command[0])) is None:
            pytest.skip(f"{command[0]} is not installed")
        self.command = [str(word) for word in command]
        if path is None:
            self._listening = socket.create_server(("127.0.0.1", 0))
            self.uri = f"nbd://127.0.0.1:{self._listening.getsockname()[1]}/"
        else:
            self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listening.bind(str(path))
            self._listening.listen(16)
            self.uri = f"nbd+unix:///?socket={path}"
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = TemporaryDirectory()  # for what a killed server leaves behind
        self.start()

    def start(self) -> None:
        descriptor = self._listening.fileno()
        self._process = subprocess.Popen(
            ["bash", "-c", _ACTIVATE, "activate", str(descriptor), *self.command],
            pass_fds=(descriptor,),
            env=os.environ | {"TMPDIR": self._scratch.name},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """SIGKILL: its clients lose their connections."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: it is there, and does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wait_until_dead(self) -> None:
        if self._process is not None:
            self._process.wait(STOP_S)

    def refuse(self) -> None:
        """Nobody listens any more, and none will."""
        self._listening.close()

    def close(self) -> None:
        """In order, so that nbdkit's script plugins remove what they have written below /tmp, wherever
        TMPDIR is."""
        if self._process is not None:
            self.go_on()
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()
        self._listening.close()
        self._scratch.cleanup()


def nbdkit(path: Path | None, *arguments: str) -> NbdServer:
    """nbdkit in the foreground; arguments are filters, the plugin and theirs."""
    return NbdServer(path, "nbdkit", "--foreground", *arguments)


def qemu_nbd(path: Path, image: Path, *arguments: str) -> NbdServer:
    """qemu-nbd for any number of clients, one after another; the image's format is in `arguments`."""
    return NbdServer(path, "qemu-nbd", "--persistent", "--discard=unmap", *arguments, image)
