"""One-shot algorithms: layers in the order in which they run, and what each gets by then."""

from engine.calibration.inputs import LayerInputs, Scaling
from engine.calibration.n_m import n_m_mask, pattern_of
from engine.calibration.patches import has_rows
from engine.calibration.result import LayerResult
from engine.calibration.sweep import Choose, Swept, best_damped, best_sweep, squared_error, sweep
from engine.calibration.walk import Calibrated, walk

__all__ = [
    "Calibrated",
    "Choose",
    "LayerInputs",
    "LayerResult",
    "Scaling",
    "Swept",
    "best_damped",
    "best_sweep",
    "has_rows",
    "n_m_mask",
    "pattern_of",
    "squared_error",
    "sweep",
    "walk",
]
