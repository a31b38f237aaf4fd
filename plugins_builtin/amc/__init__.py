"""AMC: an agent learns how much each layer can lose, episode by episode.

He et al. 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", arXiv
1802.03494: states of section 3.1, the bounded actions of algorithm 1, DDPG.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.automatic import Attempt, AutomaticPruner
from plugins_builtin.amc.agent import Agent, Step


class AMCPruner(AutomaticPruner):
    """Walks from layer to layer; the reward at the end is the metric, the budget is a wall."""

    train_episode: int
    warmup: int
    hidden1: int
    hidden2: int
    lr_a: float
    lr_c: float
    bsize: int
    rmsize: int
    tau: float
    discount: float
    init_delta: float
    delta_decay: float

    def search(self) -> None:
        """Play the episodes and adopt the best one."""
        static = self._static_features()
        agent = Agent(
            static.shape[1] + 3,
            (self.hidden1, self.hidden2),
            actor_rate=self.lr_a,
            critic_rate=self.lr_c,
            memory=self.rmsize * len(self.units),
            batch_size=self.bsize,
            tau=self.tau,
            discount=self.discount,
            seed=self.random_seed,
        )
        best: Attempt | None = None
        scale = max(abs(self.baseline), 1e-8)
        for episode in range(self.train_episode):
            steps, plan = self._play(agent, static, episode)
            attempt = self.try_plan(plan, f"episode {episode + 1}", epochs=self.candidate_epochs)
            # Relative to the model as it is: the same for fractions, percents and losses.
            reward = (self.score(attempt.metric) - self.score(self.baseline)) / scale
            agent.remember(steps, reward)
            if episode >= self.warmup:
                for _ in steps:
                    agent.learn()
            if best is None or self.better(attempt.metric, best.metric):
                best = attempt
        assert best is not None
        self.adopt(best)

    def _play(
        self, agent: Agent, static: Tensor, episode: int
    ) -> tuple[list[Step], dict[str, float]]:
        """Return an episode's steps and plan, which removes the target and no more than it must."""
        sigma = self.init_delta * self.delta_decay ** max(0, episode - self.warmup)
        plan: dict[str, float] = {}
        for place, unit in enumerate(self.units):
            state = self._state(static, place, plan)
            action = agent.random() if episode < self.warmup else agent.act(state, sigma)
            plan[unit.name] = self._bounded(plan, place, action * self.max_layer_sparsity)
        chosen = plan
        plan = self.fit(lambda strength: {n: s * strength for n, s in chosen.items()}, self.target)
        # What was done is what the plan has come to: the agent learns from that.
        names = [unit.name for unit in self.units]
        states = [
            self._state(static, place, {name: plan[name] for name in names[:place]})
            for place in range(len(names))
        ]
        actions = [plan[name] / self.max_layer_sparsity for name in names]
        following = [*states[1:], None]
        return [Step(*step) for step in zip(states, actions, following, strict=True)], plan

    def _state(self, static: Tensor, place: int, plan: dict[str, float]) -> Tensor:
        """Return what the agent sees at a unit: (10,), with what has gone, is to go, was done."""
        removed = self.removed(plan)
        last = next(reversed(plan.values()), 0.0) / self.max_layer_sparsity
        missing = max(0.0, self.target - removed)
        return torch.cat([static[place], torch.tensor([removed, missing, last])])

    def _bounded(self, plan: dict[str, float], place: int, sparsity: float) -> float:
        """Return ``sparsity``, or more where the layers to come could not make up (algorithm 1)."""
        name, most = self.units[place].name, self.max_layer_sparsity
        later = dict.fromkeys((unit.name for unit in self.units[place + 1 :]), most)

        def family(strength: float) -> dict[str, float]:
            return {**plan, **later, name: sparsity + (most - sparsity) * strength}

        if self.removed(family(0.0)) >= self.target - 1e-9:
            return sparsity
        return self.fit(family, self.target)[name]

    def _static_features(self) -> Tensor:
        """Return what is known of each unit beforehand, (units, 7), each column in [0, 1].

        Place, whether linear, input and output channels, stride, kernel size, weights.
        """
        rows = []
        for place, unit in enumerate(self.units):
            module = unit.wrappers[0].module
            weight = unit.wrappers[0].weight
            linear = float(not isinstance(module, nn.modules.conv._ConvNd))
            stride = getattr(module, "stride", 1)
            kernel = weight[0, 0].numel() if weight.dim() > 2 else 1
            rows.append(
                [
                    place,
                    linear,
                    weight.shape[1] if weight.dim() > 1 else 1,
                    weight.shape[0],
                    stride[0] if isinstance(stride, tuple) else stride,
                    kernel,
                    sum(wrapper.weight.numel() for wrapper in unit.wrappers),
                ]
            )
        table = torch.tensor(rows, dtype=torch.float32)
        low, high = table.min(dim=0).values, table.max(dim=0).values
        return (table - low) / (high - low).clamp(min=1e-12)
