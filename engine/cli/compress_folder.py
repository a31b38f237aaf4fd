"""``engine compress-folder FOLDER CONFIG OUT``: a model larger than memory, block by block."""

from __future__ import annotations

import argparse

from engine.errors import printable
from engine.user_code.named import named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="config.json and safetensors shards")
    parser.add_argument("config", metavar="CONFIG", help="a YAML or JSON file: the compression")
    parser.add_argument("out", metavar="OUT", help="the folder to write; it must not be there yet")
    parser.add_argument(
        "--batches",
        metavar="MODULE:FUNCTION",
        help="returns what to calibrate with; by default what the configuration names",
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="returns the model, where the folder is none of transformers",
    )
    parser.add_argument(
        "--to", metavar="NAME", help='an exporter that writes shards, or "safetensors"'
    )


def run(args: argparse.Namespace) -> int:
    """Compress the folder; a line for each block that is finished."""
    from engine.streaming import compress_folder  # imports torch

    def told(name: str, number: int, count: int) -> None:
        print(printable(f"{number:>{len(str(count))}}/{count}  {name}"), flush=True)

    model = None if args.model is None else named(args.model, "--model", "module:factory")
    made = compress_folder(
        args.folder,
        args.config,
        args.out,
        batches=args.batches,
        to=args.to,
        model=model,
        told=told,
    )
    print(printable(f"{made.path}: {len(made.files)} files, {sum(made.files.values()):,} bytes"))
    return 0
