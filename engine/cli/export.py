"""``engine export FILE --model MODULE:FACTORY``: a trained, compressed model as files to deploy.

With ``--to NAME`` one file, or folder, in the format of an exporter; see ``export_to.py``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config
from engine.cli import export_to
from engine.cli.export_inputs import batches_of, shape_of
from engine.errors import CheckpointError, EngineError

if TYPE_CHECKING:
    from engine.attach.compressor import Compressor
    from engine.config import Settings
    from engine.quantization.placement import Placement

#: What says that an item of a checkpoint is ``compressor.state_dict()``.
_STATE = {"algorithms", "wrappers"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="the configuration, YAML or JSON")
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        required=True,
        help="a function that returns the model as it was before it was compressed",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help='what torch.save wrote: {"model": model.state_dict(), "compressor": '
        "compressor.state_dict()}, or the model's alone",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="the weights: packed integers of a quantized model (.pth or .safetensors), the "
        "state_dict of a pruned one; with --to, the file or folder of that format",
    )
    export_to.add_arguments(parser)
    parser.add_argument("--onnx", metavar="FILE", help="also write ONNX")
    parser.add_argument(
        "--input-shape", metavar="SIZES", help="of the input, batch included, such as 1,3,224,224"
    )
    parser.add_argument(
        "--dynamic",
        metavar="DIM=NAME",
        nargs="+",
        help="sizes of the input that are free in the ONNX file, such as 0=batch 2=height 3=width; "
        "of one of several inputs mask:1=length; by default as many as the model allows",
    )
    parser.add_argument("--opset", metavar="N", type=int, help="of the ONNX file, 13 to 23")
    parser.add_argument(
        "--compare",
        choices=("error", "warn", "no"),
        default="error",
        help="what to do where the ONNX file computes something else than the model; error is the "
        "default",
    )
    quantized = parser.add_argument_group("of a quantized model")
    quantized.add_argument("--ranges", metavar="FILE", help="also write ranges and grids as JSON")
    quantized.add_argument(
        "--load-ranges", metavar="FILE", help="take the ranges of activations from such a file"
    )
    quantized.add_argument(
        "--batches",
        metavar="FILE",
        help="a tensor of sample inputs, or a list of them, by torch.save: what integer kernels "
        "need and the quantizer leaves in float gets ranges from them in the ONNX file",
    )
    pruned = parser.add_argument_group("of a pruned model")
    pruned.add_argument("--masks", metavar="FILE", help="also write the masks")
    pruned.add_argument(
        "--speedup",
        action="store_true",
        help="remove what is masked first; needs --input-shape",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the files and say what is in them."""
    settings = config.check(args.file)
    if args.to is not None:
        return export_to.run(args, _restored, settings)
    if args.set or args.example is not None:
        raise EngineError(
            "--set and --example are for a format: --to NAME\n"
            "  engine list-algorithms --exporters lists what there is"
        )
    quantized = settings.kind == "quantization"
    _refuse_others(args, quantized, settings)
    shape = shape_of(args.input_shape)
    if shape is None and (args.onnx is not None or args.speedup):
        raise EngineError(
            f"{'--onnx' if args.onnx else '--speedup'} needs --input-shape, such as 1,3,224,224"
        )
    onnx = {
        "opset_version": args.opset,
        "dynamic_axes": None if args.dynamic is None else _dynamic(args.dynamic),
        "compare": args.compare,
    }
    compressor: Any = _restored(settings, args)
    placements: list[Placement] = []
    if quantized:
        if args.load_ranges is not None:
            compressor.load_calibration(args.load_ranges)
        batches = None if args.batches is None else batches_of(args.batches)
        paths = (args.output, args.ranges, args.onnx)
        placements = compressor.export_model(*paths, shape, batches=batches, **onnx)
    else:
        import torch

        example = torch.zeros(shape) if shape is not None else None
        compressor.export_model(
            args.output,
            args.masks,
            args.onnx,
            shape,
            speedup=args.speedup,
            dummy_input=example,
            **onnx,
        )
    _tell(args, placements)
    return 0


def _restored(settings: Settings, args: argparse.Namespace) -> Compressor:
    """Return the compressor, attached to the model, with what the checkpoint holds."""
    from engine.attach.checkpoint import load_model
    from engine.attach.create import create_compressor
    from engine.files import load_tensors
    from engine.user_code.model_factory import build

    model = build(args.model)
    compressor = create_compressor(model, settings.document)
    if args.checkpoint is None:
        compressor.compress()
        return compressor
    saved = load_tensors(args.checkpoint)
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{args.checkpoint} holds a {type(saved).__name__}, no checkpoint")
    if not isinstance(saved.get("model"), Mapping):
        load_model(model, saved)
        compressor.compress()
        return compressor
    states = [v for v in saved.values() if isinstance(v, Mapping) and set(v) >= _STATE]
    if len(states) > 1:
        raise CheckpointError(f"{args.checkpoint} holds the states of {len(states)} compressors")
    load_model(model, saved["model"])
    compressor.compress()
    if states:
        compressor.load_state_dict(states[0])
        compressor.load_model_state_dict(saved["model"])
    return compressor


def _refuse_others(args: argparse.Namespace, quantized: bool, settings: Settings) -> None:
    """Raise EngineError for options of the other kind of algorithm."""
    others = ("masks", "speedup") if quantized else ("ranges", "load_ranges", "batches")
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(args, name)]
    if given:
        raise EngineError(
            f"{' and '.join(given)}: {settings.plugin.name} is a "
            f"{'quantizer' if quantized else 'pruner'}, which has none\n"
            "  engine export --help says which option is for which kind"
        )


def _dynamic(items: list[str]) -> dict[str, dict[int, str]]:
    """Return ``dynamic_axes`` of items such as "2=height" and "mask:1=length"."""
    axes: dict[str, dict[int, str]] = {}
    for item in items:
        place, sign, name = item.partition("=")
        owner, _, dim = place.rpartition(":")
        if not sign or not name.isidentifier() or not dim.lstrip("-").isdigit():
            raise EngineError(
                f'--dynamic needs DIM=NAME or INPUT:DIM=NAME, such as 2=height, got "{item}"'
            )
        axes.setdefault(owner or "input", {})[int(dim)] = name
    return axes


def _tell(args: argparse.Namespace, placements: list[Placement]) -> None:
    written = [args.output, args.ranges, args.masks, args.onnx]
    sizes = {path: Path(path).stat().st_size for path in written if path is not None}
    if args.json:
        operators = [placement._asdict() for placement in placements]
        print(json.dumps({"files": sizes, "operators": operators}, indent=2))
        return
    for path, size in sizes.items():
        print(f"{path}: {size:,} bytes")
    if placements:
        print(f"\n{export_to.operators(placements)}")
        lacking = sum(placement.lacks_grids for placement in placements)
        if lacking and args.batches is None:
            print(
                f"\n{lacking} lack grids, which --batches FILE, a few sample inputs, can give them"
            )
