"""Start-up cost of the command line: CPU time of a process, relative to ``python -c pass``.

    python docs/benchmarks/startup.py [--rounds 15]

Each case runs as a process of its own, all cases in turn, for so many rounds; the minimum counts.
The processes run in a temporary environment that finds the engine and its dependencies by plain
paths: the import hook of an editable install would make ``python -c pass`` itself slower, and every
ratio look better than it is.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = 1000
#: Distributions with an algorithm each; of so many among them something is broken.
PLUGINS, BROKEN = 200, 20
#: What is broken, in turn: no schema, no JSON, another API version, no such module.
FAULTS = ("lacking", "damaged", "newer", "gone")

CONFIG = """\
name: ten entries
compression:
  framework: torch
  type: pruning
  compressor: agp
  pruning_algorithm: l1_filter
  config_list:
"""
ENTRY = """\
    - initial_sparsity: 0.0
      final_sparsity: 0.{index}
      end_epoch: 10
      op_names: [layer{index}.conv1, layer{index}.conv2]
"""
CLI = "import sys; from engine.cli import main; sys.exit(main({arguments!r}))"


def environment(folder: Path) -> str:
    """Return the interpreter of a new environment with the engine on its path."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)])
    (folder / "lib" / version / "site-packages" / "paths.pth").write_text("\n".join(paths) + "\n")
    return str(python)


def distributions(folder: Path) -> None:
    """Install distributions that offer a script each, as far as metadata go."""
    for index in range(DISTRIBUTIONS):
        info = folder / f"example_{index}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: example-{index}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[console_scripts]\nx{index} = x{index}:main\n")


def plugins(folder: Path) -> None:
    """Install algorithms: metadata, a package, and a schema of the usual size."""
    schema = (ROOT / "plugins_builtin" / "agp" / "schema.json").read_text()
    for index in range(PLUGINS):
        fault = FAULTS[index % len(FAULTS)] if index < BROKEN else ""
        info = folder / f"plugin_{index}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: plugin-{index}\nVersion: 1.0\n"
        )
        entry = f"[engine.algorithms]\nstranger_{index} = plugin_{index}:Pruner\n"
        (info / "entry_points.txt").write_text(entry)
        package = folder / f"plugin_{index}"
        if fault == "gone":
            continue
        package.mkdir()
        (package / "__init__.py").write_text("import torch\n")
        text = schema.replace('"AGPruner", "AGP_Pruner"', "")
        if fault != "lacking":
            text = text[:-20] if fault == "damaged" else text
            text = text.replace('"api": "1.0"', '"api": "9.0"') if fault == "newer" else text
            (package / "schema.json").write_text(text)


def configurations(folder: Path) -> tuple[str, str]:
    """Return the paths of a valid configuration with ten entries and of one with a mistake."""
    text = CONFIG + "".join(ENTRY.format(index=index) for index in range(10))
    good, bad = folder / "good.yaml", folder / "bad.yaml"
    good.write_text(text)
    bad.write_text(text.replace("final_sparsity: 0.5", "final_sparsity: 1.5"))
    return str(good), str(bad)


def seconds(command: list[str], extra_path: str) -> tuple[float, int]:
    """Return the CPU time of a process and its exit code."""
    child = os.fork()
    if child == 0:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.execve(command[0], command, {**os.environ, "PYTHONPATH": extra_path})
    _, status, usage = os.wait4(child, 0)
    return usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = environment(folder / "environment")
        many, strangers = folder / "many", folder / "strangers"
        distributions(many)
        plugins(strangers)
        good, bad = configurations(folder)
        listing = CLI.format(arguments=["list-algorithms"])
        cases = {
            "python -c pass": ("pass", "", 0),
            "import argparse, json": ("import argparse, json", "", 0),
            "import jsonschema": ("import jsonschema", "", 0),
            "engine list-algorithms": (listing, "", 0),
            f"  with {DISTRIBUTIONS} distributions more": (listing, str(many), 0),
            f"  with {PLUGINS} plugins, {BROKEN} broken": (listing, str(strangers), 0),
            "engine show level": (CLI.format(arguments=["show", "level"]), "", 0),
            "engine validate, 10 entries": (CLI.format(arguments=["validate", good]), "", 0),
            "  with a mistake": (CLI.format(arguments=["validate", bad]), "", 2),
        }
        best: dict[str, float] = {}
        for _ in range(rounds):
            for case, (code, path, expected) in cases.items():
                time, exit_code = seconds([python, "-c", code], path)
                if exit_code != expected:
                    raise SystemExit(f"{case.strip()}: exit code {exit_code}, not {expected}")
                best[case] = min(time, best.get(case, time))
    base = best["python -c pass"]
    print(f"{'PROCESS':34}{'CPU ms':>8}{'RATIO':>8}")
    for case, time in best.items():
        print(f"{case:34}{1000 * time:8.1f}{time / base:8.2f}")


if __name__ == "__main__":
    main()
