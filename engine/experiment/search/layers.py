"""Which layers the entries of an experiment decide about, asked of the model that it names."""

from __future__ import annotations

import sys
from typing import Any

from engine.errors import ConfigError
from engine.experiment import Experiment


def layers_of(experiment: Experiment) -> list[list[str]] | None:
    """Return for each entry of ``config_list`` the layers that it has the last word about.

    None when the experiment names no model. The model's module is looked for in the experiment's
    folder, too. Imports torch.

    Raises:
        EngineError: there is no such module or factory, or it fails or returns no model.
        ConfigError: an entry does not fit the model.
    """
    target = experiment.data.get("model")
    entries = experiment.section.get("config_list")
    if target is None or not entries:
        return None
    from engine.attach.selection import select_layers
    from engine.user_code.model_factory import build

    if str(experiment.folder) not in sys.path:
        sys.path.insert(0, str(experiment.folder))
    model = build(target, "model")
    settings = experiment.settings
    algorithm: Any = (settings.base_plugin or settings.plugin).load()
    pointer = f"{settings.pointer}/config_list"
    selected = select_layers(
        model,
        entries,
        default_types=algorithm.default_op_types,
        source=experiment.source,
        pointer=pointer,
        line=settings.document.line,
    )
    result: list[list[str]] = [[] for _ in entries]
    for each in selected:
        result[each.place].append(each.name)
    if not any(result):
        raise ConfigError(
            [settings.document.problem("no layer is left to search", pointer)], experiment.source
        )
    return result
