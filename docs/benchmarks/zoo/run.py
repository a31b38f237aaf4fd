"""The zoo: models are masked, made smaller and compared; one JSON line each.

    python docs/benchmarks/zoo/run.py --kind graphs --out graphs.jsonl
    python docs/benchmarks/zoo/run.py --kind timm --path /where/timm/is --out timm.jsonl

A run goes on where the file of an earlier one ends. Each model has a process of its own, so that
one that hangs or crashes harms no other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

KINDS = ("graphs", "torchvision", "timm")


def entries(kind: str) -> dict[str, tuple[Any, Any]]:
    """Return what makes each model of a kind, and what draws its inputs, by name."""
    if kind == "graphs":
        from graphs import GRAPHS

        return {g.name: (g.model, g.inputs) for g in GRAPHS}
    import zoos

    found: dict[str, tuple[Any, Any]] = getattr(zoos, kind)()
    return found


def work(kind: str, name: str, rows: bool, pipe: Connection) -> None:
    """Try one model in this process and send what came of it."""
    warnings.simplefilter("ignore")
    import torch
    from trial import trial

    torch.set_num_threads(1)
    make, inputs = entries(kind)[name]
    pipe.send(trial(make, inputs, rows=rows))


def attempt(kind: str, name: str, rows: bool, limit: float) -> dict[str, Any]:
    """Try one model in a process of its own, for at most ``limit`` seconds."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=work, args=(kind, name, rows, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(limit):
            result: dict[str, Any] = ours.recv()
        else:
            result = {"outcome": "failed", "reason": f"timed out after {limit:.0f} s"}
    except EOFError:
        process.join()
        result = {"outcome": "failed", "reason": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return result


def line(name: str, result: dict[str, Any]) -> str:
    """Return one line of a table for one model."""
    share = result.get("share")
    left = "    -" if share is None else f"{share:5.2f}"
    seconds = result.get("speedup_s", float("nan"))
    text = f"{name:36} {result['outcome']:7} {left} {seconds:6.2f}s  {result.get('reason', '')}"
    return text.rstrip()


def summary(results: dict[str, dict[str, Any]]) -> str:
    """Return counts of the outcomes, and the reasons with the number of models for each."""
    counts = Counter(result["outcome"] for result in results.values())
    rows = [
        f"{sum(counts.values())} models: {', '.join(f'{n} {o}' for o, n in counts.most_common())}"
    ]
    reasons: Counter[str] = Counter()
    for result in results.values():
        if result["outcome"] == "small":
            reasons.update(result["pinned"].keys() | result["unknown"].keys())
        elif result["outcome"] != "ok":
            reasons[re.sub(r"\d+(\.\d+)?(e-\d+)?", "#", result["reason"])] += 1
    return "\n".join(
        [*rows, *(f"  {count:4}  {reason}" for reason, count in reasons.most_common(40))]
    )


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="graphs")
    parser.add_argument("--only", default="", help="a regular expression that names match")
    parser.add_argument(
        "--path", action="append", default=[], help="where torchvision and timm are"
    )
    parser.add_argument(
        "--out", type=Path, help="a file of JSON lines; its models are not repeated"
    )
    parser.add_argument("--rows", action="store_true", help="mask the rows of each layer by itself")
    parser.add_argument("--limit", type=float, default=180, help="seconds for a model")
    options = parser.parse_args()
    sys.path[:0] = options.path
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    # The first dispatch mode of a process imports it, which takes longer than most models. Compiled
    # parts of models (torchvision's roi_align) run as they are written.
    importlib.import_module("torch._dynamo").config.disable = True
    names = [name for name in entries(options.kind) if re.search(options.only, name)]
    results: dict[str, dict[str, Any]] = {}
    if options.out is not None and options.out.exists():
        for text in options.out.read_text(encoding="utf-8").splitlines():
            known = json.loads(text)
            results[known.pop("name")] = known
    started = time.monotonic()
    for name in names:
        if name in results:
            continue
        results[name] = attempt(options.kind, name, options.rows, options.limit)
        print(line(name, results[name]), flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, **results[name]}) + "\n")
    print(summary({name: results[name] for name in names}))
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
