"""``engine check NAME``: whether a plugin keeps its promises, check by check."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from engine.cli.table import WIDTH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="an algorithm, extension or exporter")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument(
        "--only", metavar="CHECK", action="append", help="run this check; may be repeated"
    )


def run(args: argparse.Namespace) -> int:
    """Run every check that is about the plugin; a finding gives exit code 1."""
    from engine.testing.outcome import BAD  # imports torch
    from engine.testing.suite import check_plugin, find

    plugin = find(args.name)
    results = []
    for result in check_plugin(plugin, only=args.only):
        results.append(result)
        if not args.json:
            print("\n".join(_lines(result)), flush=True)
    found = [result for result in results if result.outcome in BAD]
    if args.json:
        import json

        facts: dict[str, Any] = {
            "plugin": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "passed": not found,
            "checks": [result._asdict() for result in results],
        }
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return int(bool(found))
    counts = Counter(result.outcome for result in results)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    seconds = sum(result.seconds for result in results)
    print(f"\n{plugin.name} ({plugin.origin}): {told}, in {seconds:.1f} s")
    if found:
        print(f"  see one of them with: engine check {plugin.name} --only {found[0].name}")
    return int(bool(found))


def _lines(result: Any) -> list[str]:
    import textwrap

    lines = [f"{result.outcome:<10}{result.name}"]
    if result.outcome != "ok":
        lines.append(f"          {result.claim}")
    for line in result.reason.splitlines():
        lines += textwrap.wrap(
            line, WIDTH, initial_indent=" " * 12, subsequent_indent=" " * 12
        ) or [""]
    return lines
