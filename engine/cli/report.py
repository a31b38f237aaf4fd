"""``engine report FOLDER``: what came out of an automatic experiment."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from engine.cli.table import table
from engine.errors import EngineError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "experiment", metavar="FOLDER", help="the folder NAME.exp, or the experiment's file"
    )
    parser.add_argument(
        "--storage", metavar="URL", help="the storage that the experiment's runners share"
    )
    parser.add_argument("--json", action="store_true", help="print all facts as JSON")
    parser.add_argument(
        "--no-files", action="store_true", help="write no files, only print the tables"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report, and write report.json, report.html and trials.csv into the folder.

    Exit code 1 when no trial has finished.
    """
    from engine.experiment.search.report import collect
    from engine.experiment.search.report.tables import as_csv, summary

    folder = _folder(args.experiment)
    report = collect(folder, args.storage)
    print(json.dumps(report, indent=2) if args.json else printable(summary(report, table)))
    if not args.no_files:
        from engine.experiment.search.best import write_best
        from engine.experiment.search.report.page import page
        from engine.experiment.search.study import load_study

        best = None
        study = load_study(folder, args.storage) if report["best"] is not None else None
        if study is not None:
            write_best(folder, study)
            best = json.loads(folder.best.read_text(encoding="utf-8"))
        written = {
            "report.json": json.dumps(report, indent=2) + "\n",
            "report.html": page(report, best),
            "trials.csv": as_csv(report),
        }
        for name, text in written.items():
            _write(folder.root / name, text)
        if not args.json:
            from engine.cli.search_view import shown

            print(f"\nwritten: {', '.join(written)} in {shown(folder.root)}")
    return 0 if report["best"] is not None else 1


def _folder(given: str) -> Any:
    from engine.experiment import read_experiment
    from engine.experiment.search.folder import SUFFIX, Folder

    path = Path(given)
    if path.is_dir():
        inside = sorted(path.glob(f"*{SUFFIX}"))
        if not (path / "experiment.json").exists() and inside:
            names = ", ".join(str(each) for each in inside[:5])
            raise EngineError(f"{given} is no experiment\n  experiments there: {names}")
        return Folder(path.resolve())
    if not path.exists():
        raise EngineError(
            f"there is no {given}\n  an experiment's folder is its name with {SUFFIX}"
        )
    folder = Folder.of(read_experiment(path, runs=False))
    if not folder.root.is_dir():
        raise EngineError(f"{given} has not been run: there is no {folder.root}")
    return folder


def _write(path: Path, text: str) -> None:
    from engine.files import write_whole

    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
