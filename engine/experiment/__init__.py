"""Experiments: a file that says what to run, a script that reports how good it was.

Nothing here imports torch; the script does.
"""

from engine.experiment.basic_config import BasicConfig
from engine.experiment.protocol import print_result, result_in

__all__ = ["BasicConfig", "print_result", "result_in"]
