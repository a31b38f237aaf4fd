"""Which places are free for a trial, and which rest since their machine could not be used."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from engine.errors import EngineError

#: Seconds that a place rests after the first failure in a row, the second, ...; then it is left.
RESTS = (5.0, 60.0)
#: Seconds of a wait, after which a person's Ctrl-C or a view's clock is looked at again.
_PAUSE = 0.5


class Places:
    """The places of an executor.

    A machine that cannot be reached fails faster than any other one works: asked again at once, it
    would use up the trials of the whole experiment. So it rests, and is left when it fails again.

    Args:
        names: the places' names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._failures = dict.fromkeys(names, 0)
        self._rested = dict.fromkeys(names, 0.0)

    def free(self, busy: Collection[str]) -> list[str]:
        """Return the places where a trial can be started now."""
        now = time.monotonic()
        return [n for n in self._names if n not in busy and self._rested[n] <= now]

    def worked(self, name: str) -> None:
        """Note that a trial came to its end there."""
        self._failures[name] = 0

    def failed(self, name: str, reason: str) -> None:
        """Let a place rest, or leave it.

        Raises:
            EngineError: no place is left.
        """
        count = self._failures[name]
        self._failures[name] += 1
        if count < len(RESTS):
            self._rested[name] = time.monotonic() + RESTS[count]
            return
        self._names.remove(name)
        if not self._names:
            raise EngineError(
                f"no machine is left to run trials: {reason}\n"
                "  engine run goes on from here when that is mended"
            )

    def wait(self) -> None:
        """Wait until a place has rested, for a moment at most."""
        rest = min(self._rested[name] for name in self._names) - time.monotonic()
        time.sleep(min(max(rest, 0.0), _PAUSE))
