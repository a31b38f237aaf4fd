"""Which channels must go together: labels on the indices of tensor dimensions, merged as found."""

from __future__ import annotations

import torch
from torch import Tensor

#: The label of everything that can never be removed.
FIXED = 0


class Labels:
    """Union-find over integer labels, with a reason for each class that must stay.

    A label stands for one thing that can be removed: an output channel, a feature, a head. Two
    indices, in whatever tensors, have the same label when neither can be removed without the other.
    """

    def __init__(self) -> None:
        self._parent: list[int] = [FIXED]
        self._reasons: dict[int, str] = {FIXED: "its size is part of the computation"}

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new labels, int64 (count,)."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def find(self, label: int) -> int:
        """Return the representative of ``label``'s class."""
        parent = self._parent
        root = label
        while parent[root] != root:
            root = parent[root]
        while parent[label] != root:
            parent[label], label = root, parent[label]
        return root

    def roots(self, labels: Tensor) -> Tensor:
        """Return the representatives of many labels, int64 of the same shape."""
        unique, inverse = labels.unique(return_inverse=True)
        return torch.tensor([self.find(x) for x in unique.tolist()], dtype=torch.int64)[inverse]

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Merge labels pairwise; both int64 (n,)."""
        if left is right or torch.equal(left, right):
            return
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self.find(a), self.find(b)
            if a != b:
                low, high = min(a, b), max(a, b)
                if high in self._reasons:
                    self._reasons.setdefault(low, self._reasons[high])
                self._parent[high] = low

    def unite_all(self, labels: Tensor) -> None:
        """Merge all of ``labels`` into one class."""
        unique = labels.unique()
        if unique.numel() > 1:
            self.unite(unique[:1].expand(unique.numel() - 1), unique[1:])

    def pin(self, labels: Tensor, reason: str) -> None:
        """Say that ``labels`` must stay, and why; the first reason is kept."""
        for label in labels.unique().tolist():
            self._reasons.setdefault(self.find(label), reason)

    def reason(self, label: int) -> str | None:
        """Return why ``label`` must stay, None when it need not."""
        return self._reasons.get(self.find(label))

    def pinned(self, labels: Tensor) -> Tensor:
        """Return which of ``labels`` must stay, bool of the same shape."""
        unique, inverse = labels.unique(return_inverse=True)
        flags = [self.find(label) in self._reasons for label in unique.tolist()]
        return torch.tensor(flags, dtype=torch.bool)[inverse]
