"""Experiments: a file that says what to run, a script that reports how good it was.

Nothing here imports torch until a script calls ``report_model``.
"""

from engine.experiment.arguments import experiment_args, save_model
from engine.experiment.basic_config import BasicConfig
from engine.experiment.model_report import report_model
from engine.experiment.protocol import print_result, result_in
from engine.experiment.read import Experiment, read_experiment

__all__ = [
    "BasicConfig",
    "Experiment",
    "experiment_args",
    "print_result",
    "read_experiment",
    "report_model",
    "result_in",
    "save_model",
]
