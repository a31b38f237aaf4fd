"""The process behind ``apart.py``: it forks a child for each line of JSON that it is given.

Where it cannot fork, it answers the first one itself and ends. The child answers with a line:

- ``{"module": name}``: import it, and answer what that changed in the process, which modules it
  loaded, and how much CPU time it took beside the time that importing torch took.
- ``{"call": "module:function", "plugin": name, "group": group}``: call a function with the plugin
  as a Subject; ``error`` is what it raised, ``skipped`` whether that was CheckSkippedError.

Both have ``"path"``, the ``sys.path`` of whoever asks.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from typing import Any, NoReturn

#: What a plugin may import freely: it is there in any case.
_COMMON = (
    "torch._dynamo",
    "engine",
    "engine.pruning",
    "engine.quantization",
    "engine.speedup",
    "engine.export",
)
#: A child that takes longer is ended.
SECONDS = 120


def forks() -> bool:
    """Return whether children are forked; else the process answers one request and ends."""
    return hasattr(os, "fork") and sys.platform != "darwin"


def main() -> None:
    """Answer requests until the input ends."""
    started = time.process_time()
    importlib.import_module("torch")
    seconds = time.process_time() - started
    for name in (*_COMMON, "engine.testing.suite"):
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            getattr(module, public)
    if not forks():
        _end_with(os.dup(1), sys.stdin.readline(), seconds)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            signal.alarm(SECONDS)
            _end_with(writing, line, seconds)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            sys.stdout.write(stream.read().decode() + "\n")
            sys.stdout.flush()
        os.waitpid(child, 0)


def _end_with(writing: int, line: str, seconds: float) -> NoReturn:
    """Write the answer to a request and end."""
    answer = _answer(json.loads(line))
    os.write(writing, json.dumps({**answer, "torch": seconds}).encode())
    os._exit(0)  # without tidying up: what was tried may have left anything behind


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    sys.path[:] = request["path"]
    importlib.invalidate_caches()
    return _import(request["module"]) if "module" in request else _call(request)


def _call(request: dict[str, Any]) -> dict[str, Any]:
    from engine.plugins import registry
    from engine.testing.outcome import CheckFailedError, CheckSkippedError
    from engine.testing.subject import Subject

    module, _, name = request["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    registry.refresh()
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 1)
    try:
        function(Subject(registry.find(request["plugin"], request["group"])))
    except (CheckFailedError, CheckSkippedError) as error:
        return {"error": str(error), "skipped": isinstance(error, CheckSkippedError)}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        return {"error": text, "skipped": False}
    return {"error": "", "skipped": False}


def _import(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        with open("output", "w+b") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            before, modules = _state(), set(sys.modules)
            started, error = time.process_time(), ""
            try:
                importlib.import_module(name)
            except BaseException as raised:
                error = f"{type(raised).__name__}: {raised}"
            seconds = time.process_time() - started
            after = _state()
            sys.stdout.flush()
            sys.stderr.flush()
            changed = [what for what, value in before.items() if after[what] != value]
            if output.seek(0, os.SEEK_END):
                changed.append("what is printed")
        if os.listdir(folder) != ["output"]:
            changed.append("files in the working folder")
        os.chdir("/")
    new = {loaded.partition(".")[0] for loaded in set(sys.modules) - modules}
    loaded = sorted(new - sys.stdlib_module_names)
    return {"changed": changed, "loaded": loaded, "seconds": seconds, "error": error}


def _state() -> dict[str, Any]:
    """Return what an import has no business to change, by name."""
    import logging

    import torch
    from torch.optim import optimizer

    return {
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's random numbers": hash(bytes(torch.get_rng_state().tolist())),
        "torch's number of threads": torch.get_num_threads(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's hooks on all optimizers": len(optimizer._global_optimizer_post_hooks),
        "torch's hooks on all modules": len(torch.nn.modules.module._global_forward_hooks),
        "methods of torch's classes": [
            id(method)
            for method in (
                torch.nn.Module.__call__,
                torch.nn.Module.__setattr__,
                torch.nn.Linear.forward,
                torch.nn.Conv2d.forward,
                torch.optim.SGD.step,
                torch.Tensor.backward,
            )
        ],
        "random's numbers": hash(random.getstate()),
        "environment variables": dict(os.environ),
        "the working folder": os.getcwd(),
        "sys.path": list(sys.path),
        "warning filters": [str(each) for each in warnings.filters],
        "logging's root": (logging.root.level, len(logging.root.handlers)),
        "signal handlers": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
    }
