"""Reading a configuration from a pipe, as ``engine validate <(make-config)`` has it."""

from __future__ import annotations

import os
import stat
import time

#: For so many seconds a pipe may have no writer, or one that writes nothing.
NOBODY, SILENT = 5.0, 60.0


def is_pipe(path: str) -> bool:
    """Return whether ``path`` is a pipe, named or not."""
    return stat.S_ISFIFO(os.stat(path).st_mode)


def read_pipe(path: str, most: int) -> bytes:
    """Return what comes through a pipe, at most ``most`` bytes.

    Raises:
        TimeoutError: nobody came to write, or a writer wrote nothing, for too long.
        OSError: it cannot be read.
    """
    # Not blocking: opening a pipe waits for a writer, who may never come.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    content, last = b"", time.monotonic()
    try:
        while len(content) < most:
            try:
                part, patience = os.read(descriptor, most - len(content)), NOBODY
            except BlockingIOError:  # there is a writer, and nothing yet
                part, patience = None, SILENT
            if part:
                content, last = content + part, time.monotonic()
            elif part == b"" and content:
                return content
            elif time.monotonic() - last > patience:
                raise TimeoutError(f"nobody has written to this pipe for {patience:g} seconds")
            else:
                time.sleep(0.01)
    finally:
        os.close(descriptor)
    return content
