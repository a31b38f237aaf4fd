"""How time, memory and disk grow when a model is compressed block by block.

    python docs/benchmarks/scale.py [--threads 1] [--only gptq]

Random Llamas are written to a temporary folder; each is compressed in a process of its own, whose
CPU time, largest resident memory and largest temporary folder are printed as rows of Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

#: (hidden, layers, tokens): each of the three grows by itself.
RUNS = [
    (256, 4, 2048),
    (512, 4, 2048),
    (1024, 4, 2048),
    (512, 8, 2048),
    (512, 16, 2048),
    (512, 4, 4096),
    (512, 4, 8192),
]
ALGORITHMS = ("naive", "wanda", "sparse_gpt", "gptq")
WINDOW = 256


def configuration(algorithm: str) -> dict[str, Any]:
    """Return the configuration: half of the weights, or four bits in groups of 64."""
    entry: dict[str, Any] = {"op_types": ["Linear"]}
    if algorithm in ("wanda", "sparse_gpt"):
        entry["sparsity"] = 0.5
    else:
        entry |= {"quant_types": ["weight"], "quant_bits": 4}
        entry |= {"quant_scheme": "per_group_symmetric", "quant_group_size": 64}
    entries = [entry, {"op_names": ["lm_head"], "exclude": True}]
    return {"compressor": algorithm, "config_list": entries}


def measure(folder: Path, algorithm: str, tokens: int, threads: int) -> None:
    """Compress a folder in this process and print what it took as JSON."""
    import warnings

    import transformers  # noqa: F401  (its import is no part of what is measured)

    import engine

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"input_ids": torch.randint(0, 1000, (1, WINDOW), generator=generator)}
        for _ in range(tokens // WINDOW)
    ]
    states = 0

    def told(name: str, number: int, count: int) -> None:
        nonlocal states
        files = Path(f"{out}.partial", "states").rglob("*")
        states = max(states, sum(file.stat().st_size for file in files if file.is_file()))

    out = folder / "small"
    before, begun = time.process_time(), resident()
    given = None if algorithm == "naive" else batches
    made = engine.compress_folder(folder, configuration(algorithm), out, batches=given, told=told)
    result = {
        "cpu": time.process_time() - before,
        "begun": begun,
        "memory": peak(),
        "states": states / 2**20,
        "written": sum(made.files.values()) / 2**20,
    }
    print(json.dumps(result))


def resident() -> float:
    """Return this process's resident memory in MiB."""
    return _status("VmRSS:")


def peak() -> float:
    """Return the largest resident memory of this process in MiB."""
    return _status("VmHWM:")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def run(hidden: int, layers: int, tokens: int, algorithm: str, threads: int) -> dict[str, float]:
    """Return what one run took, in a process of its own."""
    from random_llama import write

    mlp = hidden * 11 // 4
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "dense")
        write(folder, hidden, mlp, hidden // 64, layers, 1000, torch.float32)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        command = [sys.executable, __file__, "--folder", str(folder), "--only", algorithm]
        command += ["--tokens", str(tokens), "--threads", str(threads)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(printed.strip().splitlines()[-1])
    block = (4 * hidden**2 + 3 * hidden * mlp) * 4 / 2**20
    return {**result, "model": size, "block": block}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=ALGORITHMS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        measure(args.folder, args.only, args.tokens, args.threads)
        return
    print(
        "| algorithm | hidden | layers | tokens | model, MiB | block | CPU seconds | peak, MiB |"
        " above the start | states on disk |"
    )
    print("|" + "---|" * 10)
    for algorithm in ALGORITHMS if args.only is None else (args.only,):
        for hidden, layers, tokens in RUNS if algorithm != "naive" else RUNS[:5]:
            found = run(hidden, layers, tokens, algorithm, args.threads)
            above = found["memory"] - found["begun"]
            sizes = f"{found['model']:.0f} | {found['block']:.0f} | {found['cpu']:.1f}"
            taken = f"{found['memory']:.0f} | {above:.0f} | {found['states']:.0f}"
            print(
                f"| `{algorithm}` | {hidden} | {layers} | {tokens} | {sizes} | {taken} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
