"""What is tried in a process of its own, for what it may do to this one.

One process is started when it is first needed; it has PyTorch and the engine imported and forks a
child for each request, which costs some milliseconds (``probe.py``).
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import lru_cache
from typing import Any

from engine.testing.outcome import CheckSkippedError


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a child answers to ``request``; see ``probe.py`` for what there is to ask.

    Raises:
        CheckSkippedError: this system cannot fork.
        RuntimeError: the child died before it answered, or took too long.
    """
    if not hasattr(os, "fork"):
        raise CheckSkippedError("this system cannot fork a process to try it in")
    process = _probe()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({**request, "path": sys.path}) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline().strip()
    if not answer:
        raise RuntimeError("the process that tried it died, or took too long, and gave no answer")
    found: dict[str, Any] = json.loads(answer)
    return found


@lru_cache(maxsize=1)
def _probe() -> subprocess.Popen[str]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from engine.testing.probe import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    atexit.register(process.communicate)
    return process
