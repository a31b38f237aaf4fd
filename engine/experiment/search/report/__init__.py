"""What came out of an automatic experiment: collected once, shown in several forms."""

from engine.experiment.search.report.collect import collect

__all__ = ["collect"]
