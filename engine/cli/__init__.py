"""The command line. Each command is a module of this package, imported when it is called.

Exit codes: 0 all is well, 1 the command found something, 2 it could not be carried out as asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from engine.errors import EngineError, nearest, printable

#: name: (module, what it does). A module has ``add_arguments(parser)`` and ``run(args) -> int``.
COMMANDS = {
    "list-algorithms": ("engine.cli.list_algorithms", "list the installed algorithms"),
    "show": ("engine.cli.show", "show an algorithm: its configuration and an example"),
    "validate": ("engine.cli.validate", "check a configuration file"),
    "run": ("engine.cli.run", "run an experiment, one-time or automatic"),
    "report": ("engine.cli.report", "show what came out of an automatic experiment"),
    "export": ("engine.cli.export", "write a compressed model: packed weights, ranges, ONNX"),
    "compress-folder": ("engine.cli.compress_folder", "compress a model larger than memory"),
    "analyze": ("engine.cli.analyze", "count, time and take apart a model"),
    "new-algorithm": ("engine.cli.new_algorithm", "make a package with a plugin of your own"),
    "check": ("engine.cli.check", "check that a plugin keeps its promises"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Bad input never ends in a traceback."""
    _open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments
    try:
        code = _run([word for word in arguments if word != "--traceback"])
        sys.stdout.flush()
        return code
    except EngineError as error:
        if traceback:
            raise
        print(printable(str(error)), file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has had enough. What is still in the buffer must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Output that cannot be written: a full disk, a closed terminal.
        if traceback:
            raise
        print(f"engine: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if traceback:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse has printed a message or the help
        return stop.code if isinstance(stop.code, int) else 2


def _run(arguments: list[str]) -> int:
    import argparse
    from importlib import import_module

    name = next((word for word in arguments if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        return _unknown(name)
    parser = argparse.ArgumentParser(
        prog="engine", description="A plugin engine for compressing PyTorch models."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = None
    # A parser takes a while to make; only the list of commands needs one for each.
    needed = COMMANDS if name is None or arguments[0] != name else {name: COMMANDS[name]}
    for command, (module_name, summary) in needed.items():
        below = commands.add_parser(command, help=summary, description=summary.capitalize() + ".")
        if command == name:
            module = import_module(module_name)
            module.add_arguments(below)
            run = module.run
    args = parser.parse_args(arguments)
    if args.version:
        print(f"engine {version()}")
        return 0
    if run is None:
        parser.print_help(sys.stderr)
        return 2
    return int(run(args))


def _open_streams() -> None:
    """Let nobody read what is printed where the caller has closed the stream it is printed to."""
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        nowhere = open(os.devnull, "r+", encoding="utf-8")  # noqa: SIM115  (until the process ends)
        sys.stdin, sys.stdout, sys.stderr = (
            nowhere if each is None else each for each in (sys.stdin, sys.stdout, sys.stderr)
        )


def _unknown(name: str) -> int:
    print(f'engine: unknown command "{name}"', file=sys.stderr)
    print(f"  commands: {', '.join(COMMANDS)}", file=sys.stderr)
    near = nearest(name, COMMANDS)
    if near:
        print(f'  did you mean "{near}"?', file=sys.stderr)
    return 2


def version() -> str:
    """Return the version of the distribution that this package belongs to."""
    from engine.plugins import registry

    own = (p for p in registry.algorithms() if p.comes_from(registry.OWN_DISTRIBUTION))
    return next((plugin.version for plugin in own), "unknown")
