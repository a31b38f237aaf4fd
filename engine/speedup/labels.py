"""Which channels must go together: labels on the indices of tensor dimensions, merged as found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: The label of everything that can never be removed.
FIXED = 0

#: Of a class that may go: larger than the number of any reason.
_NONE = torch.iinfo(torch.int64).max

#: Labels that there is room for at first.
_ROOM = 1 << 16


class Labels:
    """Union-find over integer labels, with a reason for each class that must stay.

    A label stands for one thing that can be removed: an output channel, a feature, a head. Two
    indices, in whatever tensors, have the same label when neither can be removed without the other.
    All is done for many labels at once; a question costs what it asks about, not what there is.
    """

    def __init__(self) -> None:
        self._count = 1
        #: By label: another one of its class, itself for the class's representative, its lowest.
        self._parent = torch.arange(_ROOM)
        #: By representative: the number of the first reason for which its class stays.
        self._why = torch.full((_ROOM,), _NONE)
        self._reasons = ["its size is part of the computation"]
        self._why[FIXED] = 0
        #: By label: whether it stays, since anything changed last.
        self._stays: Tensor | None = None

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new labels, int64 (count,)."""
        first, self._count = self._count, self._count + count
        self._stays = None
        if self._count > len(self._parent):
            old, size = len(self._parent), 2 * self._count
            self._parent = torch.cat([self._parent, torch.arange(old, size)])
            self._why = torch.cat([self._why, torch.full((size - old,), _NONE)])
        return torch.arange(first, self._count)

    def find(self, label: int) -> int:
        """Return the representative of ``label``'s class."""
        return int(self.roots(torch.tensor(label)))

    def roots(self, labels: Tensor) -> Tensor:
        """Return the representatives of many labels, int64 of the same shape."""
        parent, flat = self._parent, labels.flatten()
        roots = parent.index_select(0, flat)
        higher = parent.index_select(0, roots)
        if not torch.equal(roots, higher):
            while not torch.equal(roots, higher):
                roots, higher = higher, parent.index_select(0, higher)
            parent[flat] = roots
        return roots.view(labels.shape)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Merge labels pairwise; both int64 (n,)."""
        if left is right or torch.equal(left, right):
            return
        self._stays = None
        parent, why = self._parent, self._why
        first = a, b = self.roots(left.flatten()), self.roots(right.flatten())
        while not torch.equal(a, b):
            # The higher of two goes under the lower; of several that want it, under the lowest.
            high, low = torch.maximum(a, b), torch.minimum(a, b)
            parent.scatter_reduce_(0, high, low, "amin")
            under = parent.index_select(0, high)
            while not torch.equal(under, higher := parent.index_select(0, under)):
                parent[high] = under = higher
            a, b = self.roots(a), self.roots(b)
        if first[0] is not a:
            known = torch.minimum(*(why.index_select(0, roots) for roots in first))
            why.scatter_reduce_(0, a, known, "amin")

    def unite_rows(self, labels: Tensor) -> None:
        """Merge, for each row of ``labels`` (rows, n), all of it into one class."""
        if labels.shape[1] > 1:
            self.unite(labels[:, :1].expand(-1, labels.shape[1] - 1), labels[:, 1:])

    def pin(self, labels: Tensor, reason: str) -> None:
        """Say that ``labels`` must stay, and why; the first reason is kept."""
        if labels.numel():
            self.pin_all([(labels, reason)])

    def pin_all(self, pins: Sequence[tuple[Tensor, str]]) -> None:
        """Say of many labels that they must stay, as one :meth:`pin` after the other does."""
        self._stays = None
        if not pins:
            return
        sizes = torch.tensor([labels.numel() for labels, _ in pins])
        numbers = torch.arange(len(self._reasons), len(self._reasons) + len(pins))
        roots = self.roots(torch.cat([labels.flatten() for labels, _ in pins]))
        self._why.scatter_reduce_(0, roots, numbers.repeat_interleave(sizes), "amin")
        self._reasons += [reason for _, reason in pins]

    def reason(self, label: int) -> str | None:
        """Return why ``label`` must stay, None when it need not."""
        number = int(self._why[self.find(label)])
        return None if number == _NONE else self._reasons[number]

    def pinned(self, labels: Tensor) -> Tensor:
        """Return which of ``labels`` must stay, bool of the same shape."""
        roots = self.roots(labels.flatten())
        return (self._why.index_select(0, roots) != _NONE).view(labels.shape)

    def stays(self, labels: Tensor) -> Tensor:
        """Return what :meth:`pinned` does, from a table: for many questions and few changes."""
        if self._stays is None:
            self._stays = self.pinned(torch.arange(self._count))
        return self._stays.index_select(0, labels.flatten()).view(labels.shape)
