"""``engine analyze WHAT --model MODULE:FACTORY``: what a model costs and what of it is bound."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.errors import EngineError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")
_DTYPES = ("float32", "float64", "float16", "bfloat16", *_INTEGERS)


class _Subject(NamedTuple):
    model: nn.Module
    inputs: tuple[Tensor, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    analyses = parser.add_subparsers(dest="analysis", metavar="WHAT", required=True)
    below = {}
    for name, (_, summary) in _ANALYSES.items():
        below[name] = analyses.add_parser(
            name, help=summary, description=summary.capitalize() + "."
        )
        below[name].add_argument(
            "--model",
            metavar="MODULE:FACTORY",
            required=True,
            help="a function that returns the model",
        )
        below[name].add_argument(
            "--input-shape",
            metavar="SIZES",
            required=True,
            action="append",
            help="an input's shape, batch included, such as 1,3,224,224, or 1,16:int64 for another "
            "type than the model's; once for each positional input",
        )
        below[name].add_argument(
            "--state-dict", metavar="FILE", help="load these weights into the model"
        )
        below[name].add_argument("--json", action="store_true", help="print all facts as JSON")
    for name in ("flops", "conflicts"):
        below[name].add_argument(
            "--masks", metavar="FILE", required=name == "conflicts", help="a mask file"
        )
    for name in ("flops", "dependencies"):
        below[name].add_argument(
            "--output", metavar="FILE", help="also write the table, as CSV or as FILE.json"
        )
    below["flops"].add_argument(
        "--speedup",
        action="store_true",
        help="remove what is masked, and show each layer before and after",
    )
    below["dependencies"].add_argument(
        "--kind",
        choices=tuple(_KINDS),
        default="channel",
        help="layers whose outputs go together, layers whose inputs do, or the counts that grouped "
        "convolutions allow",
    )
    below["conflicts"].add_argument(
        "--fix", metavar="FILE", help="write masks that remove only what all layers agree on"
    )
    below["latency"].add_argument(
        "--against", metavar="MODULE:FACTORY", help="a second model, timed in turn with the first"
    )
    below["latency"].add_argument(
        "--runs", type=int, default=50, help="how many forward passes count (50)"
    )


def run(args: argparse.Namespace) -> int:
    """Carry out one analysis; conflicts that were found give exit code 1."""
    from engine.user_code.model_factory import build

    model = build(args.model)
    if args.state_dict is not None:
        from engine.attach.checkpoint import load_model
        from engine.files import load_tensors

        load_model(model, load_tensors(args.state_dict))
    inputs = []
    for text in args.input_shape:
        try:
            inputs.append(_tensor(text, model))
        except RuntimeError as error:  # too large for the machine's memory
            raise EngineError(f"--input-shape {text}: {error}") from error
    return _ANALYSES[args.analysis][0](_Subject(model, tuple(inputs)), args)


def _flops(subject: _Subject, args: argparse.Namespace) -> int:
    from engine.analysis import count_flops_params, speedup_table

    model, inputs = subject
    before = count_flops_params(model, inputs, masks=args.masks)
    found: Any = before
    if args.speedup:
        from engine.pruning.mask_files import apply_masks
        from engine.speedup import speedup

        if args.masks is not None:
            apply_masks(model, args.masks)
        report = speedup(model, inputs)
        found = speedup_table(before, count_flops_params(model, inputs), report)
    if args.output is not None:
        found.export(args.output)
    print(json.dumps(found.as_dict(), indent=2) if args.json else found)
    return 0


def _dependencies(subject: _Subject, args: argparse.Namespace) -> int:
    from engine import analysis
    from engine.files import write_whole

    dependency = getattr(analysis, _KINDS[args.kind])(*subject)
    rows = dependency.rows()
    facts = {
        "kind": args.kind,
        "dependencies": dict(rows) if args.kind == "group" else [row[1:] for row in rows],
    }
    if args.output is not None and args.output.endswith(".json"):
        text = json.dumps(facts, indent=2) + "\n"
        write_whole(args.output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    elif args.output is not None:
        dependency.export(args.output)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, *rest in rows:
        print(f"{name}: {', '.join(map(str, rest))}")
    if not rows:
        print("no channel of this model can be removed")
    return 0


def _conflicts(subject: _Subject, args: argparse.Namespace) -> int:
    from engine.analysis import fix_mask_conflict, mask_conflicts
    from engine.files import save_tensors

    model, inputs = subject
    found = mask_conflicts(model, args.masks, inputs)
    if args.fix is not None:
        save_tensors(args.fix, fix_mask_conflict(args.masks, model, inputs))
    print(json.dumps(found.as_dicts(), indent=2) if args.json else found)
    return 1 if found else 0


def _latency(subject: _Subject, args: argparse.Namespace) -> int:
    from engine.analysis import compare_latency, measure_latency, model_size
    from engine.user_code.model_factory import build

    model, inputs = subject
    if args.against is None:
        latency, size = measure_latency(model, inputs, runs=args.runs), model_size(model)
        facts: dict[str, Any] = {"latency": latency._asdict(), "size": size._asdict()}
        text = f"latency: {latency}\nsize: {size}"
    else:
        other = build(args.against)
        ratio = compare_latency(model, other, inputs, runs=args.runs)
        sizes = [model_size(each) for each in (model, other)]
        facts = {**ratio._asdict(), "a": ratio.a._asdict(), "b": ratio.b._asdict()}
        facts["sizes"] = [size._asdict() for size in sizes]
        text = f"{ratio}\nsize of a: {sizes[0]}\nsize of b: {sizes[1]}"
    print(json.dumps(facts, indent=2) if args.json else text)
    return 0


def _tensor(text: str, model: nn.Module) -> Tensor:
    """Return an example for ``1,3,32,32`` or ``1,16:int64``: normal numbers, or zeros."""
    import torch

    sizes, colon, dtype = text.partition(":")
    if colon and dtype not in _DTYPES:
        near = nearest(dtype, _DTYPES)
        hint = f'\n  did you mean "{near}"?' if near else ""
        raise EngineError(
            f'--input-shape {text}: unknown type "{dtype}"\n  allowed: {", ".join(_DTYPES)}{hint}'
        )
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise EngineError(
            f'--input-shape needs sizes of at least 1, such as 1,3,224,224, got "{text}"'
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if dtype in _INTEGERS:
        # Zero is a valid index wherever numbers are indices.
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=like.device)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return values.to(like.device, getattr(torch, dtype) if colon else like.dtype)


_KINDS = {
    "channel": "ChannelDependency",
    "input": "InputChannelDependency",
    "group": "GroupDependency",
}
_ANALYSES: dict[str, tuple[Callable[[_Subject, argparse.Namespace], int], str]] = {
    "flops": (_flops, "count parameters and operations, layer by layer"),
    "dependencies": (_dependencies, "list the layers that must lose the same channels"),
    "conflicts": (_conflicts, "list where masks of layers that are bound together disagree"),
    "latency": (_latency, "time forward passes on this machine, and count bytes"),
}
