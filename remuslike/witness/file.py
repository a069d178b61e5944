"""A witness in a file that both sides reach: a lock, a generation, a holder.

Every change is a compare-and-swap under an exclusive flock(2) of a file beside it, made durable
before the answer; the record is replaced by rename(2), so a reader sees one or the other.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from remuslike.engine.ports import Token
from remuslike.errors import WitnessError

# A record is some 60 bytes; a larger file is somebody else's.
_RECORD_BYTES_MAX = 4096

# A healthy file system answers in milliseconds, and a lock is held for as long; past this, ask again.
_ANSWER_LIMIT_S = 3.0

_Answer = TypeVar("_Answer")


class FileWitness:
    """`remuslike.engine.ports.Witness` over `path`; its directory must exist and take files."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> Token:
        return await self._ask(self._read)

    async def acquire(self, expected_generation: int, holder: str) -> tuple[bool, Token]:
        return await self._ask(partial(self._acquire, expected_generation, holder))

    async def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        """In a thread, which is left to itself if the file system hangs; asking again is safe."""
        with trio.move_on_after(_ANSWER_LIMIT_S):
            return await trio.to_thread.run_sync(question, abandon_on_cancel=True)
        raise WitnessError(f"witness.path = '{self._path}': no answer within {_ANSWER_LIMIT_S:.0f} s")

    def _read(self) -> Token:
        try:
            with self._path.open("rb") as file:
                body = json.loads(file.read(_RECORD_BYTES_MAX))
            generation, holder = body["generation"], body["holder"]
            if type(generation) is not int or generation < 1 or type(holder) is not str or not holder:
                raise ValueError(f"generation {generation!r}, holder {holder!r}")
        except FileNotFoundError:
            return Token(0, "")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise WitnessError(
                f"witness.path = '{self._path}': is not a witness's record: {error}"
            ) from error
        return Token(generation, holder)

    def _acquire(self, expected_generation: int, holder: str) -> tuple[bool, Token]:
        wanted = Token(expected_generation + 1, holder)
        lock_path = self._path.with_name(self._path.name + ".lock")
        try:
            with lock_path.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = self._read()
                if found == wanted:
                    return True, found  # asked before, and the answer was lost
                if found.generation != expected_generation:
                    return False, found
                self._replace(wanted)
                return True, wanted
        except OSError as error:
            raise WitnessError(f"witness.path = '{self._path}': can't be changed: {error}") from error

    def _replace(self, token: Token) -> None:
        draft = self._path.with_name(self._path.name + ".new")
        with draft.open("w") as file:
            json.dump({"generation": token.generation, "holder": token.holder}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
