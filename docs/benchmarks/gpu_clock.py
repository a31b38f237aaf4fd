"""Time, waits and memory of a call on a card, or, to try the scripts, on the CPU."""

import os
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from interleaved import medians

import engine
import plugins_builtin

_OURS = [Path(package.__file__).parent for package in (engine, plugins_builtin)]
_TORCH = Path(torch.__file__).parent
_PASSED_OVER = (Path(__file__), Path(warnings.__file__))


def settle(device):
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(variants, device, seconds, repeat=5, seed=0):
    """Return {name: (median seconds, median of the ratios to the first variant)}.

    Rounds run all variants in a random order until ``seconds`` are over, at least three. Each is
    timed ``repeat`` times together, from an idle device to an idle device.
    """
    order = list(variants)
    for name in order * 2:
        variants[name]()
    settle(device)
    times = {name: [] for name in order}
    shuffler = random.Random(seed)
    end = time.perf_counter() + seconds
    while len(times[order[0]]) < 3 or time.perf_counter() < end:
        for name in shuffler.sample(order, len(order)):
            settle(device)
            started = time.perf_counter()
            for _ in range(repeat):
                variants[name]()
            settle(device)
            times[name].append((time.perf_counter() - started) / repeat)
    return medians(times)


def waits(call, device):
    """Return where the host waits for the card within ``call``, and how often; None on the CPU."""
    if device.type != "cuda":
        return None
    found = Counter()

    def note(message, *_):
        if "called a synchronizing" in str(message):
            found[_place()] += 1

    settle(device)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def peak(call, device):
    """Return the most bytes that were in use on the card within ``call``; None on the CPU."""
    if device.type != "cuda":
        return None
    settle(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    settle(device)
    return torch.cuda.max_memory_allocated(device)


def is_ours(place):
    """Return whether a place of :func:`waits` is in the engine or a built-in plugin."""
    return place.startswith(tuple(f"{folder.name}{os.sep}" for folder in _OURS))


def _place():
    """Return the nearest line that runs of the engine or a plugin, else the nearest not torch's."""
    frame, outside = sys._getframe(2), ""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        for folder in _OURS:
            if file.is_relative_to(folder):
                return f"{file.relative_to(folder.parent)}:{frame.f_lineno}"
        if not outside and not file.is_relative_to(_TORCH) and file not in _PASSED_OVER:
            outside = f"{os.sep.join(file.parts[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return outside
