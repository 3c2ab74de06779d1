"""Files that several processes append to: one at a time, and never to one that was just put aside."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

OWNER_ONLY: Final = 0o600
"""Mode of new files."""
TIMEOUT: Final = 5.0
"""Seconds to wait for other processes that write, where nobody waits without end."""
_PAUSE: Final = 0.005
"""Seconds between two tries to get a lock that may not be waited for without end."""


@contextmanager
def locked(path: Path, *, create: bool = True, timeout: float | None = None) -> Iterator[int]:
    """A file, open for appending and locked (POSIX ``flock``); not one that another process has just put aside.

    Args:
        path: The file. A new one can be read by its owner only.
        create: Make it if it is not there.
        timeout: Seconds to wait for the lock; without end if None.

    Raises:
        OSError: It cannot be opened, is no regular file, or stays locked for too long.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        file = os.open(path, flags, OWNER_ONLY)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError("it is no regular file")
            _lock(file, timeout)
            if is_at(file, path):
                yield file
                return
        finally:
            os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether the open file is the one that is found at a path."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(file)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


def write_whole(file: int, content: bytes) -> None:
    """Write with one call, and wait until it is on the disk.

    Raises:
        OSError: Not everything was taken.
    """
    written = os.write(file, content)
    if written < len(content):
        raise OSError(f"only {written} of {len(content)} bytes were taken; is the disk full?")
    os.fsync(file)


def _lock(file: int, timeout: float | None) -> None:
    import fcntl

    if timeout is None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                message = f"another process has locked it for more than {timeout:g} s"
                raise TimeoutError(errno.ETIMEDOUT, message) from None
        time.sleep(_PAUSE)
