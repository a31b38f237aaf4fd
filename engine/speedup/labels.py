"""Which channels must go together: labels on the indices of tensor dimensions, merged as found."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

#: The label of everything that can never be removed.
FIXED = 0


class Labels:
    """Union-find over integer labels, with a reason for each class that must stay.

    A label stands for one thing that can be removed: an output channel, a feature, a head. Two
    indices, in whatever tensors, have the same label when neither can be removed without the other.
    Questions about many labels are answered from tables, made anew after labels were merged.
    """

    def __init__(self) -> None:
        self._parent = array("q", [FIXED])
        self._reasons: dict[int, str] = {FIXED: "its size is part of the computation"}
        self._roots: Tensor | None = None
        self._pinned: Tensor | None = None

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new labels, int64 (count,)."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._roots = self._pinned = None
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
        if self._roots is None:
            # A copy: an array whose memory somebody else holds cannot grow.
            roots = torch.frombuffer(self._parent, dtype=torch.int64).clone()
            while not torch.equal(roots, higher := roots[roots]):
                roots = higher
            self._roots = roots
        return self._roots[labels]

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Merge labels pairwise; both int64 (n,)."""
        if left is right or torch.equal(left, right):
            return
        parent, find, reasons = self._parent, self.find, self._reasons
        merged = False
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            # Most labels are their own representative or one step from it.
            a, b = parent[a], parent[b]
            if a == b:
                continue
            a, b = find(a), find(b)
            if a != b:
                low, high = (a, b) if a < b else (b, a)
                if high in reasons:
                    reasons.setdefault(low, reasons[high])
                parent[high] = low
                merged = True
        if merged:
            self._roots = self._pinned = None

    def unite_rows(self, labels: Tensor) -> None:
        """Merge, for each row of ``labels`` (rows, n), all of it into one class."""
        self.unite(labels[:, :1].expand_as(labels).flatten(), labels.flatten())

    def pin(self, labels: Tensor, reason: str) -> None:
        """Say that ``labels`` must stay, and why; the first reason is kept."""
        for label in labels.unique().tolist():
            root = self.find(label)
            if root not in self._reasons:
                self._reasons[root] = reason
                if self._pinned is not None:
                    self._pinned[root] = True

    def reason(self, label: int) -> str | None:
        """Return why ``label`` must stay, None when it need not."""
        return self._reasons.get(self.find(label))

    def pinned(self, labels: Tensor) -> Tensor:
        """Return which of ``labels`` must stay, bool of the same shape."""
        roots = self.roots(labels)
        if self._pinned is None:
            self._pinned = torch.zeros(len(self._parent), dtype=torch.bool)
            self._pinned[torch.tensor(list(self._reasons))] = True
        return self._pinned[roots]
