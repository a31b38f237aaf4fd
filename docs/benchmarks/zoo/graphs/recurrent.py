"""LSTM, GRU and RNN layers with their options, and cells in loops."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from graphs.registry import N, graph, real, whole


class Tagger(nn.Module):
    """Embedded tokens, a recurrent layer, a label per token."""

    def __init__(self, layer, width):
        super().__init__()
        self.embed, self.layer = nn.Embedding(11, 16), layer
        self.mid, self.head = nn.Linear(width, 24), nn.Linear(24, 5)

    def forward(self, ids):
        x, _ = self.layer(self.embed(ids))
        return self.head(F.relu(self.mid(x)))


@graph(whole(11, N, 6))
def LSTMTagger():
    return Tagger(nn.LSTM(16, 20, batch_first=True), 20)


@graph(whole(11, N, 6))
def LSTMBidirectional():
    return Tagger(nn.LSTM(16, 20, num_layers=2, bidirectional=True, batch_first=True), 40)


@graph(whole(11, 6, N))
def LSTMProjected():
    return Tagger(nn.LSTM(16, 20, proj_size=12), 12)


@graph(whole(11, N, 6))
def GRUStack():
    return Tagger(nn.GRU(16, 20, num_layers=3, bias=False, batch_first=True), 20)


@graph(whole(11, N, 6))
def RNNTanh():
    return Tagger(nn.RNN(16, 20, bidirectional=True, batch_first=True), 40)


@graph(whole(11, N, 6))
class LastState(nn.Module):
    """A classifier on the final states of both directions."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layer = nn.GRU(16, 20, bidirectional=True, batch_first=True)
        self.head = nn.Linear(40, 4)

    def forward(self, ids):
        _, h = self.layer(self.embed(ids))
        return self.head(torch.cat([h[-2], h[-1]], dim=-1))


@graph(real(N, 6, 8))
class PackedSequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.layer = nn.Linear(8, 16), nn.LSTM(16, 20, batch_first=True)
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        lengths = torch.tensor([6 - i % 3 for i in range(len(x))])
        x = F.relu(self.enter(x))
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        return self.head(x)


@graph(real(N, 6, 8), whole(6, N))
class PackedWithLengths(nn.Module):
    """Sequences of lengths that are an input, read in both directions by a GRU."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(8, 16)
        self.layer = nn.GRU(16, 20, bidirectional=True, batch_first=True)
        self.mid, self.head = nn.Linear(40, 24), nn.Linear(24, 4)

    def forward(self, x, lengths):
        x = F.relu(self.enter(x))
        packed = pack_padded_sequence(x, lengths + 1, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=6)
        return self.head(F.relu(self.mid(x)))


@graph(real(N, 5, 8))
class LSTMCells(nn.Module):
    """Two stacked cells in a Python loop, states that start at zero."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.LSTMCell(8, 20), nn.LSTMCell(20, 16), nn.Linear(16, 4)

    def forward(self, x):
        first = second = None
        out = []
        for t in range(x.shape[1]):
            first = self.a(x[:, t], first)
            second = self.b(first[0], second)
            out.append(self.head(second[0]))
        return torch.stack(out, 1)


@graph(real(N, 5, 8))
class GRUCells(nn.Module):
    """The state starts as ``x.new_zeros(batch, self.hidden)``, and the output is fed back."""

    def __init__(self):
        super().__init__()
        self.hidden = 20
        self.cell, self.head = nn.GRUCell(12, 20), nn.Linear(20, 4)

    def forward(self, x):
        state, y, out = x.new_zeros(len(x), self.hidden), x.new_zeros(len(x), 4), []
        for step in x.unbind(1):
            state = self.cell(torch.cat([step, y], 1), state)
            y = self.head(state)
            out.append(y)
        return torch.stack(out, 1)


@graph(real(N, 3, 8, 16))
class ConvLSTM(nn.Module):
    """Convolutional features read column by column (CRNN), then a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
        self.layer, self.head = nn.LSTM(32, 20, bidirectional=True), nn.Linear(40, 6)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        x = x.permute(3, 0, 1, 2).flatten(2)
        return self.head(self.layer(x)[0])


@graph(real(N, 9, 8))
class StateSpace(nn.Module):
    """A selective scan: step sizes and projections from the input, a state per channel."""

    def __init__(self):
        super().__init__()
        self.enter, self.conv = nn.Linear(8, 48), nn.Conv1d(24, 24, 3, padding=2, groups=24)
        self.dt, self.bc = nn.Linear(24, 24), nn.Linear(24, 8)
        self.log_a, self.d = nn.Parameter(torch.randn(24, 4)), nn.Parameter(torch.randn(24))
        self.leave = nn.Linear(24, 8)

    def forward(self, x):
        x, gate = self.enter(x).chunk(2, -1)
        n = x.shape[1]
        x = F.silu(self.conv(x.transpose(1, 2))[..., :n].transpose(1, 2))
        b, c = self.bc(x).split(4, -1)
        dt = F.softplus(self.dt(x))
        decay = torch.exp(-dt[..., None] * self.log_a.exp())
        state, out = torch.zeros_like(decay[:, 0]), []
        for t in range(n):
            state = decay[:, t] * state + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
            out.append((state * c[:, t, None]).sum(-1))
        return self.leave((torch.stack(out, 1) + self.d * x) * F.silu(gate))
