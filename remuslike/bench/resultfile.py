"""The result file of a run on its disk: begun, gone on with, and appended to a cell at a time."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from types import TracebackType

from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError
from remuslike.bench.options import RunOptions, forced_over, refuse_others
from remuslike.bench.results import Cell, Header, Results, decode_untrusted, encode_line


class ResultFile:
    """A file that is open for more cells; `found` is what an earlier run has left in it, `broken` why
    it can't be written any more."""

    def __init__(self, options: RunOptions, header: Header) -> None:
        """Begins the file with `header`, unless it is there: then it must be of the same options,
        program and machine.

        Raises ResultsError when it isn't a result file, BenchOptionError when it is of another run or in use,
        and BenchEnvironmentError when it can't be written.
        """
        self._path = options.json_path
        self.broken: BenchEnvironmentError | None = None
        self._forced: str | None = None
        try:
            # Not "a": what was cut short at the end is overwritten.
            self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock()
            self.found = self._go_on(options, header)
        except BaseException:
            with suppress(OSError):  # what could not be written is tried again
                self._file.close()
            raise

    def _lock(self) -> None:
        """For as long as it is open. Raises BenchOptionError."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchOptionError(
                f"--json {self._path}: another run is writing to it; wait for its end, or give another file"
            ) from None

    def _go_on(self, options: RunOptions, header: Header) -> Results:
        contents = self._file.read()
        if not contents:
            self._append(encode_line(header))
            return Results(header=header, cells=())
        whole = contents[: contents.rfind(b"\n") + 1]
        lines = whole.decode(errors="replace").split("\n")[:-1]
        found = decode_untrusted((f"{line}\n" for line in lines), str(self._path))
        refuse_others(found.header, header, options)
        self._forced = forced_over(found.header, header)
        self._file.seek(len(whole))
        self._file.truncate()
        return found

    def add(self, cell: Cell) -> None:
        """A cell more, which is in the file when this returns. Raises BenchEnvironmentError."""
        self._append(encode_line(cell.model_copy(update={"forced": self._forced})))

    def _append(self, line: str) -> None:
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            self.broken = self._unwritable(error)
            raise self.broken from error

    def _unwritable(self, error: OSError) -> BenchEnvironmentError:
        return BenchEnvironmentError(f"--json {self._path}: can't be written: {error.strerror}")

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as error:
            # What could not be written is tried again, and has been told of.
            if self.broken is None:
                raise self._unwritable(error) from error
