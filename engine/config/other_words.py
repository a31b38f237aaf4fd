"""The words of NNI's later releases and of other tools: read where they mean the same, else named.

Nothing of them is documented as a setting here: a configuration that is written anew uses the words
of the schemas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Keys of entries that mean the same thing: the key here, and its value from the other one.
_SAME: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "sparse_ratio": ("sparsity", lambda value: value),
    "op_names_re": ("op_names", lambda names: _each(names, "re:{}")),
    "op_partial_names": ("op_names", lambda names: _each(names, "*{}*", glob=True)),
}

#: What Auptimizer calls keys of the section once a script has them.
_SECTION = {"compression_type": "type", "compression_framework": "framework"}

_OF_A_JOB = ("save_model", "folder_name")

#: What stands for others that people write, in entries and as arguments.
_MEANS = {
    "total_sparsity": "sparsity is of each layer by itself; for all together use the extension "
    "global_ranking, or an algorithm that searches",
    "exclude_op_names": "a further entry behind this one: {op_names: [...], exclude: true}",
    "exclude_op_types": "a further entry behind this one: {op_types: [...], exclude: true}",
    "exclude_op_names_re": 'a further entry behind this one: {op_names: ["re:..."], exclude: true}',
    "max_sparsity_per_layer": "max_layer_sparsity, an argument of the algorithms that search",
    "flops_ratio": "in the entries sparsity: 1 - flops_ratio, and beside them budget: flops",
    "target_names": "quant_types: [weight, input, output]",
    "target_settings": "quant_bits and quant_scheme, for all or for each of quant_types",
    "quant_dtype": "quant_bits, a number of bits",
    "quant_algo": "the algorithm's name as compressor, or its class",
    "trainer": "your own loop: train between compress() and export_model()",
    "criterion": "your own loop: train between compress() and export_model()",
    "training_func": "your own loop: train between compress() and export_model()",
    "evaluator": "your own loop; only algorithms that search take evaluator(model)",
    "finetuner": "trainer(model, optimizer, epoch), of the algorithms that search",
    "short_term_fine_tuner": "trainer(model, optimizer, epoch), of the algorithms that search",
    "training_epochs": "your own loop: train between compress() and export_model()",
    "num_iterations": "end_epoch and frequency in the entries of a schedule",
    "traced_optimizer": "optimizer, as it is",
    "val_loader": "evaluator(model), which returns a score and runs on any data",
    "checkpoint_dir": "experiment_data_dir",
    "row": "rho",
    "mode": 'extensions: ["global_ranking"] or ["dependency_aware"]',
    "dummy_inputs": "dummy_input",
}


def section_of(section: dict[str, Any], *, alone: bool) -> dict[str, Any]:
    """Return a compression section with the keys of Auptimizer's decorator as they are here.

    Args:
        section: the section.
        alone: whether it is no part of an experiment: a job's configuration, or what a script made
            of one. There ``save_model`` and ``folder_name`` say what the script does in the end.
    """
    renamed = {old: new for old, new in _SECTION.items() if old in section and new not in section}
    dropped = [key for key in _OF_A_JOB if alone and key in section]
    if not renamed and not dropped:
        return section
    return {renamed.get(k, k): value for k, value in section.items() if k not in dropped}


def translated(config_list: Any) -> Any:
    """Return entries with keys of other tools in the words of the schemas; the rest as it is.

    A key whose counterpart is there with another meaning is left: it is reported as unknown.
    """
    if not isinstance(config_list, list):
        return config_list
    return [_entry(entry) if isinstance(entry, dict) else entry for entry in config_list]


def meant_by(key: str) -> str | None:
    """Return what to write for a key of another tool, or None if it is none that is known."""
    return _MEANS.get(key)


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    if not _SAME.keys() & entry.keys():
        return entry
    result = {key: value for key, value in entry.items() if key not in _SAME}
    for key in _SAME.keys() & entry.keys():
        name, value_of = _SAME[key]
        value = value_of(entry[key])
        if name not in result:
            result[name] = value
        elif isinstance(result[name], list) and isinstance(value, list):
            result[name] = [*result[name], *value]
        else:
            result[key] = entry[key]
    return result


def _each(names: Any, form: str, *, glob: bool = False) -> Any:
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return names
    plain = [_escaped(name) for name in names] if glob else names
    return [form.format(name) for name in plain]


def _escaped(name: str) -> str:
    """Return a glob that matches ``name`` and nothing else."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
