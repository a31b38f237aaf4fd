"""The lottery ticket search: train, prune a share of what is left, rewind the weights, repeat.

Frankle and Carbin 2019, "The Lottery Ticket Hypothesis", arXiv 1803.03635, section 2. Larger
networks are set back to an early epoch instead of to their first weights: Frankle et al. 2020,
"Linear Mode Connectivity and the Lottery Ticket Hypothesis", arXiv 1912.05671.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from typing import Any

import torch

from engine import EngineError, Schedule, Wrapper, hookimpl


class LotteryTicketPruner(Schedule):
    """Prunes in ``prune_iterations`` rounds and rewinds the weights before each.

    The loop is ``for _ in pruner.get_prune_iterations(): pruner.prune_iteration_start();`` and
    then a whole training. Round 0 trains the dense network. With ``rewind_epoch`` k the others
    begin at its epoch k: call ``update_epoch`` in round 0, and train from epoch k on in the others.
    """

    reset_weights: bool
    rewind_epoch: int
    lr_scheduler: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rounds = {wrapper.config["prune_iterations"] for wrapper in self.wrappers}
        if len(rounds) > 1:
            raise EngineError(
                f"all entries must have the same prune_iterations, got {sorted(rounds)}: "
                "one rewinding serves the whole model"
            )
        self.rounds = rounds.pop() if rounds else 0
        self.round = -1
        self._start: dict[str, Any] = (
            copy.deepcopy(self._trainables())
            if self.reset_weights and self.rewind_epoch == 0
            else {}
        )

    @hookimpl(wrapper=True)
    def sparsity(  # type: ignore[override]
        self, wrapper: Wrapper, epoch: int
    ) -> Generator[None, float, float]:
        """Return ``1 - (1 - s)^(i / n)``: each round removes the same share of what is left."""
        final = yield
        return float(1 - (1 - final) ** (max(0, self.round) / self.rounds))

    def get_prune_iterations(self) -> range:
        """Return the rounds, the dense one included."""
        return range(self.rounds + 1)

    def unfinished(self) -> str | None:
        """Return whether no round has begun."""
        return None if self.round >= 0 else "prune_iteration_start was never called"

    def update_epoch(self, epoch: int) -> None:
        """Keep the weights of ``rewind_epoch``, at its beginning in the dense round."""
        if self.reset_weights and self.round <= 0 and 0 < epoch == self.rewind_epoch:
            self._start = copy.deepcopy(self._trainables())

    def prune_iteration_start(self) -> None:
        """Prune by the trained weights, then rewind weights, optimizer and learning rate.

        Raises:
            EngineError: there are no rounds left, or the dense one has not come to
                ``rewind_epoch``.
        """
        if self.round >= self.rounds:
            raise EngineError(f"all {self.rounds + 1} rounds are done")
        if self.round == 0 and self.reset_weights and not self._start:
            raise EngineError(
                f"update_epoch({self.rewind_epoch}) was not called in the dense round: there are "
                "no weights to rewind to"
            )
        self.round += 1
        self.update_masks()
        if self.round > 0 and self.reset_weights:
            start = copy.deepcopy(self._start)
            self.bound_model.load_state_dict(start["model"])
            if self.optimizer is not None and "optimizer" in start:
                self.optimizer.load_state_dict(
                    _with_newcomers(start["optimizer"], self.optimizer.state_dict())
                )
            if self.lr_scheduler is not None and "lr_scheduler" in start:
                self.lr_scheduler.load_state_dict(start["lr_scheduler"])
        self.apply_masks()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the round and the weights to rewind to."""
        return {"round": self.round, "start": self._start}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`get_extra_state`."""
        self.round, self._start = state["round"], state["start"]

    def _trainables(self) -> dict[str, Any]:
        holders = {
            "model": self.bound_model,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
        }
        with torch.no_grad():
            return {k: holder.state_dict() for k, holder in holders.items() if holder is not None}


def _with_newcomers(start: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state to rewind to where it has more parameters by now.

    A quantizer that learns its grid adds them at the end of a group; they begin anew. In a state a
    parameter is its place, counted over all groups.
    """
    places: dict[int, int] = {}
    groups = []
    for old, new in zip(start["param_groups"], now["param_groups"], strict=False):
        places.update(zip(old["params"], new["params"], strict=False))
        groups.append({**old, "params": new["params"]})
    groups += now["param_groups"][len(groups) :]
    return {"state": {places[i]: s for i, s in start["state"].items()}, "param_groups": groups}
