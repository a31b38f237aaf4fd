"""What is tried in a process of its own, for what it may do to this one.

One process is started when it is first needed; it has PyTorch and the engine imported and forks a
child for each request, which costs some milliseconds (``probe.py``). Where that is impossible
(Windows) or unsafe once PyTorch is loaded (macOS), each request has a process of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from typing import IO, Any

from engine.testing.probe import SECONDS, forks


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a child answers to ``request``; see ``probe.py`` for what there is to ask.

    Raises:
        RuntimeError: the child died before it answered, or took too long; the text says what the
            process behind it printed last, if anything.
    """
    if not forks():
        _probe.cache_clear()
    process, said = _probe()
    assert process.stdin is not None
    assert process.stdout is not None
    answer = ""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps({**request, "path": sys.path}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline().strip() if forks() else _only_answer(process)
    if not answer:
        said.seek(0)
        last = said.read().strip().splitlines()[-1:]
        raise RuntimeError(
            "the process that tried it died, or took too long, and gave no answer"
            + "".join(f": {line}" for line in last)
        )
    found: dict[str, Any] = json.loads(answer)
    return found


def _only_answer(process: subprocess.Popen[str]) -> str:
    """Return what a process answers that lives for one request; nothing if it takes too long."""
    try:
        return process.communicate(timeout=SECONDS)[0].strip()
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return ""


@lru_cache(maxsize=1)
def _probe() -> tuple[subprocess.Popen[str], IO[str]]:
    said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (it lives as long as the process)
    code = f"import sys; sys.path[:] = {sys.path!r}; from engine.testing.probe import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if forks():
        atexit.register(process.communicate)
    return process, said
