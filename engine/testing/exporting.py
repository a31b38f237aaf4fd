"""Checks of exporters: what a format is said to hold it holds, and all else is refused."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.errors import ExportError
from engine.export.deploy import export_to, made, missing, write
from engine.export.read_back import fault_read
from engine.export.source import Source
from engine.testing.exported_models import Case, beyond, cases
from engine.testing.outcome import EXPORTER, CheckSkippedError, check, require
from engine.testing.settings import extension_arguments
from engine.testing.subject import Subject


@check(EXPORTER)
def what_it_can_hold_is_read_back(subject: Subject) -> str:
    """Each scheme, width and group that it says it holds is read back, and computes the same."""
    lacking = missing(subject.plugin.reader)
    if lacking:
        raise CheckSkippedError(f"its reader is not installed: {', '.join(lacking)}")
    told = []
    for case in cases(subject):
        with _folder():
            target = _target(subject)
            _export(subject, case, target)
            source = Source(case.compressor, case.example, "error")
            exporter = made(subject.plugin, extension_arguments(subject.plugin))
            fault = fault_read(exporter, source, target)
            require(not fault, f"{case.what}: {fault}")
        told.append(case.what)
    return "; ".join(told)


@check(EXPORTER)
def what_it_cannot_hold_is_refused(subject: Subject) -> str:
    """What its schema leaves out is refused, by layer and with a reason, and nothing is written."""
    told = []
    for case in beyond(subject):
        with _folder() as folder:
            try:
                _export(subject, case, _target(subject))
            except ExportError as error:
                left = os.listdir(folder)
                require(not left, f"{case.what}: refused, and {', '.join(left)} was left")
                require(len(str(error).splitlines()) > 1, f"{case.what}: no reason: {error}")
                told.append(case.what)
                continue
            require(False, f"{case.what}: written, though the schema does not say so")
    if not told:
        raise CheckSkippedError("its schema limits nothing that could be tried")
    return "; ".join(told)


@check(EXPORTER)
def it_leaves_the_model_as_it_was(subject: Subject) -> None:
    """Exporting changes neither values nor modes nor hooks of the model, nor its modules."""
    case = next(iter(cases(subject)))
    model = case.compressor.bound_model.train()
    before = _state(model)
    with _folder():
        _export(subject, case, _target(subject))
    after = _state(model)
    for what, own in before.items():
        same = all(map(_same, own, after[what])) and len(own) == len(after[what])
        require(same, f"{what} of the model changed")


@check(EXPORTER)
def it_writes_its_file_and_nothing_else(subject: Subject) -> str:
    """It writes to the place that it is given, and nowhere else."""
    case = next(iter(cases(subject)))
    with _folder() as folder:
        target = _target(subject)
        _export(subject, case, target)
        others = sorted(set(os.listdir(folder)) - {target.name, f"{target.name}.data"})
        require(not others, f"it also wrote {', '.join(others)}")
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        require(files and all(p.stat().st_size for p in files), "it wrote nothing")
        return ", ".join(str(p.relative_to(folder)) for p in files)


@check(EXPORTER)
def a_failure_leaves_what_was_there(subject: Subject) -> None:
    """Where writing fails, what was at the place before is as it was."""
    case = next(iter(cases(subject)))
    with _folder() as folder:
        target = _target(subject)
        _export(subject, case, target)
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        failing = _failing(subject)
        source = Source(case.compressor, case.example, "no")
        try:
            write(subject.plugin, failing, source, target)
        except ExportError:
            after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            require(after == before, "a failing export changed what was there")
            return
        require(False, "an error of the disk is not told")


def _failing(subject: Subject) -> Any:
    exporter = made(subject.plugin, extension_arguments(subject.plugin))
    whole = exporter.write

    def broken(source: Source, path: Path) -> None:
        whole(source, path)
        raise OSError("the disk is full")

    exporter.write = broken  # type: ignore[method-assign]
    return exporter


def _export(subject: Subject, case: Case, target: Path) -> None:
    export_to(
        case.compressor,
        subject.plugin.qualified_name,
        target,
        dummy_input=case.example,
        compare="no",
        options=extension_arguments(subject.plugin),
    )


def _target(subject: Subject) -> Path:
    ending = next(iter(subject.plugin.endings), "")
    return Path("model" if ending == "/" else f"model{ending}").resolve()


@contextmanager
def _folder() -> Iterator[Path]:
    """Within, the current folder is an empty one, so that what is written beside shows."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name).resolve()
        finally:
            os.chdir(home)


def _state(model: nn.Module) -> dict[str, list[Any]]:
    return {
        "a tensor": [value.detach().clone() for value in model.state_dict().values()],
        "the mode": [module.training for module in model.modules()],
        "a module": [id(module) for module in model.modules()],
        "the hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        ],
        "a class": [type(module) for module in model.modules()],
    }


def _same(own: Any, other: Any) -> bool:
    return torch.equal(own, other) if isinstance(own, torch.Tensor) else own == other
