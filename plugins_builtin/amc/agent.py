"""Deep deterministic policy gradient for one number per layer.

Lillicrap et al. 2016, "Continuous control with deep reinforcement learning", arXiv 1509.02971,
algorithm 1, with the noise of He et al. 2018, arXiv 1802.03494, section 3.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Step(NamedTuple):
    """One layer of an episode: what was seen, done and seen next (None after the last one)."""

    state: Tensor
    action: float
    following: Tensor | None


class Agent:
    """Actor and critic, their slow copies, and what they learn from.

    Args:
        features: size of a state.
        hidden: sizes of the two hidden layers.
        actor_rate: learning rate of the actor.
        critic_rate: learning rate of the critic.
        memory: how many steps are remembered.
        batch_size: steps of one update.
        tau: how fast the slow copies follow.
        discount: of what comes after a layer.
        seed: of everything random here. PyTorch's own generator is left as it is.
    """

    def __init__(
        self,
        features: int,
        hidden: tuple[int, int],
        *,
        actor_rate: float,
        critic_rate: float,
        memory: int,
        batch_size: int,
        tau: float,
        discount: float,
        seed: int,
    ) -> None:
        self._random = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._actor = nn.Sequential(_network(features, hidden), nn.Sigmoid())
            self._critic = _network(features + 1, hidden)
        self._slow_actor = copy.deepcopy(self._actor)
        self._slow_critic = copy.deepcopy(self._critic)
        self._actor_steps = torch.optim.Adam(self._actor.parameters(), actor_rate)
        self._critic_steps = torch.optim.Adam(self._critic.parameters(), critic_rate)
        self._memory: deque[tuple[Step, float]] = deque(maxlen=memory)
        self._batch_size, self._tau, self._discount = batch_size, tau, discount
        self._average: float | None = None

    def random(self) -> float:
        """Return an action by lot, uniform in [0, 1]."""
        return float(torch.rand((), generator=self._random))

    @torch.no_grad()
    def act(self, state: Tensor, sigma: float) -> float:
        """Return the actor's action in [0, 1] with normal noise, cut off at both ends.

        Args:
            state: (features,).
            sigma: standard deviation of the noise.
        """
        mean = float(self._actor(state[None]))
        for _ in range(20):
            action = mean + sigma * float(torch.randn((), generator=self._random))
            if 0 <= action <= 1:
                return action
        return mean

    def remember(self, steps: list[Step], reward: float) -> None:
        """Keep an episode: each of its steps gets the reward of the end."""
        self._memory.extend((step, reward) for step in steps)
        average = self._average
        self._average = reward if average is None else 0.5 * average + 0.5 * reward

    def learn(self) -> None:
        """Do one update of the actor and the critic."""
        drawn = torch.randint(len(self._memory), (self._batch_size,), generator=self._random)
        batch = [self._memory[i] for i in drawn.tolist()]
        state = torch.stack([step.state for step, _ in batch])
        action = torch.tensor([[step.action] for step, _ in batch])
        following = torch.stack(
            [step.state if step.following is None else step.following for step, _ in batch]
        )
        goes_on = torch.tensor([[float(step.following is not None)] for step, _ in batch])
        # Rewards less their moving average: the variance of the estimate falls (section 3.3).
        reward = torch.tensor([[r - (self._average or 0.0)] for _, r in batch])
        with torch.no_grad():
            later = self._slow_critic(torch.cat([following, self._slow_actor(following)], dim=1))
            wanted = reward + self._discount * goes_on * later
        self._critic_steps.zero_grad()
        F.mse_loss(self._critic(torch.cat([state, action], dim=1)), wanted).backward()
        self._critic_steps.step()
        self._actor_steps.zero_grad()
        (-self._critic(torch.cat([state, self._actor(state)], dim=1)).mean()).backward()
        self._actor_steps.step()
        self._follow(self._slow_actor, self._actor)
        self._follow(self._slow_critic, self._critic)

    @torch.no_grad()
    def _follow(self, slow: nn.Module, fast: nn.Module) -> None:
        for mine, other in zip(slow.parameters(), fast.parameters(), strict=True):
            mine.lerp_(other, self._tau)


def _network(features: int, hidden: tuple[int, int]) -> nn.Sequential:
    first, second = hidden
    last = nn.Linear(second, 1)
    nn.init.uniform_(last.weight, -3e-3, 3e-3)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(features, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), last
    )
