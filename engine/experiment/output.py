"""What a script prints: read while it prints, and kept in bounded size, its beginning and its end.

The script writes to the file itself and nothing stands between, so a flood of output fills a disk
faster than anybody reads it. Where the system can take the middle out of a file that is being
written (Linux), that is done while it runs; on every system the file that is kept is cut when the
script has ended. What is left out is said where it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from engine.errors import EngineError
from engine.files import write_whole

#: How much of a job's output is kept unless the experiment says otherwise.
LIMIT = 16 << 20
#: Bytes of output that are read at a time.
_BYTES = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


class Output:
    """The file that a script prints to.

    Args:
        path: the file; it is there.
        limit: bytes that are kept, half of them from the beginning and half from the end; None:
            all.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        self._limit = limit
        self._file = path.open("rb")
        self._partial = b""
        self._punched = 0

    def lines(self, *, rest: bool = False) -> list[str]:
        """Return complete lines printed since the last call; ``rest``: all, an unfinished one, too.

        Bytes that are not UTF-8 are replaced, and lines end in a newline on every system. Where
        more was printed meanwhile than is kept, a line says how much is not among them.
        """
        notice = self._catch_up()
        text = self._partial + self._file.read(-1 if rest else _BYTES)
        complete, self._partial = (text, b"") if rest else _at_last_newline(text)
        lines = complete.decode("utf-8", errors="replace").replace("\r\n", "\n")
        return notice + lines.splitlines(keepends=True)

    def close(self, *, ended: bool) -> None:
        """Let go of the file; ``ended``: nobody writes to it any more, and it is cut to its limit.

        Where the shorter one cannot be written the file stays as it is.
        """
        if self._file.closed:
            return
        size = os.fstat(self._file.fileno()).st_size
        self._file.close()  # a file that is open cannot be replaced on Windows
        if ended and self._limit is not None and size > self._limit:
            with contextlib.suppress(OSError, EngineError):
                self._cut(size, self._limit // 2)

    def _catch_up(self) -> list[str]:
        """Leave out what is not kept, where a reader is that far behind."""
        limit = self._limit
        if limit is None:
            return []
        size = os.fstat(self._file.fileno()).st_size
        at, keep = self._file.tell(), size - limit // 2
        if size - self._punched > 2 * limit:
            _punch(self.path, limit // 2, keep)
            self._punched = size
        if size - at <= limit:
            return []
        self._file.seek(keep)
        self._file.readline()  # what is left of a line
        begun = len(self._partial)
        self._partial = b""
        return [_notice(self._file.tell() - at + begun, "not shown")]

    def _cut(self, size: int, half: int) -> None:
        with self.path.open("rb") as source:
            head, _ = _at_last_newline(source.read(half))
            source.seek(size - half)
            left_out = half - len(head) + size - 2 * half + len(source.readline(half))
            parts = (head, _notice(left_out, "left out").encode(), source.read())
        write_whole(self.path, lambda temporary: temporary.write_bytes(b"".join(parts)))


def limit_of(arguments: dict[str, object]) -> int | None:
    """Return how many bytes of output ``resource_args`` ask to keep; None: all."""
    given = arguments.get("output_limit", LIMIT >> 20)
    return None if given is None else int(float(str(given)) * (1 << 20))


def _notice(count: int, what: str) -> str:
    return f"[engine: {count:,} bytes of output {what}; resource_args: output_limit]\n"


def _at_last_newline(text: bytes) -> tuple[bytes, bytes]:
    place = text.rfind(b"\n") + 1
    return text[:place], text[place:]


def _punch(path: Path, begin: int, end: int) -> None:
    """Give the disk back what is between two places of a file, which read as zeros then."""
    if not sys.platform.startswith("linux") or end <= begin:
        return
    # Whatever cannot be done here: the file is cut when the script has ended.
    with contextlib.suppress(Exception), path.open("r+b") as file:
        allocate = ctypes.CDLL(None, use_errno=True).fallocate64
        allocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        allocate(file.fileno(), _KEEP_SIZE | _PUNCH_HOLE, begin, end - begin)
