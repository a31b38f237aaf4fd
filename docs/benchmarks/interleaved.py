"""Timing variants against each other in one process: shuffled rounds, CPU time, ratios of medians.

Machines are shared and noisy, so that a single time says nothing. Each round runs every variant
once, in a random order; a ratio compares times of the same round.
"""

import random
import statistics
import time


def compare(variants, rounds, warmup=2, repeat=1, seed=0):
    """Return {name: (median seconds, median of the ratios to the first variant)}.

    ``variants`` maps a name to a callable; each call of it is timed ``repeat`` times together.
    """
    order = list(variants)
    for name in order * warmup:
        variants[name]()
    times = {name: [] for name in order}
    shuffler = random.Random(seed)
    for _ in range(rounds):
        for name in shuffler.sample(order, len(order)):
            run = variants[name]
            started = time.process_time()
            for _ in range(repeat):
                run()
            times[name].append((time.process_time() - started) / repeat)
    return medians(times)


def medians(times):
    """Return {name: (median, median of the ratios to the first of the same round)}."""
    base = next(iter(times.values()))
    return {
        name: (
            statistics.median(own),
            statistics.median(t / b for t, b in zip(own, base, strict=True)),
        )
        for name, own in times.items()
    }


def show(title, results):
    """Print one table of :func:`compare`."""
    print(title)
    width = max(map(len, results))
    for name, (seconds, ratio) in results.items():
        print(f"  {name:{width}}  {seconds * 1e3:10.3f} ms  {ratio:6.3f}")
    print()
