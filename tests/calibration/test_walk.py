"""What a walk shows of each layer, against the whole model run anew for each."""

import copy

import pytest
import torch
from decoders import decoder, tokens
from torch import nn

from engine import EngineError, Wrapper
from engine.calibration import Calibrated, walk


def wrappers(model, *types):
    types = types or (nn.Linear,)
    return [Wrapper(m, name, {}) for name, m in model.named_modules() if isinstance(m, types)]


def inputs_of(model, layer, batches, run):
    """The layer's inputs, from plain runs of the whole model."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            run(model, batch)
    hook.remove()
    return seen


def call(model, batch):
    return model(batch)


class Residual(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.first = nn.Conv2d(size, size, 3, padding=1, groups=2)
        self.second = nn.Conv2d(size, size, 3, padding=1, padding_mode="circular")

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


class Parted(nn.Module):
    """Two parts one after the other, the first with a part of its own."""

    def __init__(self, size):
        super().__init__()
        inner = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size))
        self.mix = nn.ModuleDict({"inner": inner, "last": nn.Linear(size, size)})
        self.mlp = _Mlp(size)

    def forward(self, x):
        x = x + self.mix["last"](torch.relu(self.mix["inner"](x)))
        return x + self.mlp(x)


class _Mlp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.RMSNorm(size),
            nn.Linear(size, 9),
            nn.Linear(9, size),
        )

    def forward(self, x):
        return self.down(torch.tanh(self.up(self.norm(x))))


def parted():
    torch.manual_seed(0)
    return nn.Sequential(*(Parted(6) for _ in range(3))).eval()


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.Sequential(Residual(8), Residual(8)),
        nn.Flatten(),
        nn.Linear(72, 5),
    ).eval()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    "kind", ["decoder", "skip", "convolutional", "single", "no list", "parted"]
)
@torch.no_grad()
def test_each_layer_sees_what_became_of_those_before_it(kind, folder, tmp_path):
    batches = tokens()
    if kind == "convolutional":
        model, batches = convolutional(), [torch.randn(3, 1, 8, 8) for _ in range(5)]
    elif kind == "single":
        model, batches = nn.Linear(6, 3), [torch.randn(4, 6) for _ in range(2)]
    elif kind == "parted":
        model, batches = parted(), [torch.randn(3, 6) for _ in range(5)]
    elif kind == "no list":
        model = decoder(depth=1).layers[0]
        batches = [torch.randn(2, 5, 32) for _ in range(4)]
    else:
        model = decoder(depth=5, skip=kind == "skip")
    plain = copy.deepcopy(model).double()
    own = wrappers(model, nn.Linear, nn.Conv2d)
    doubles = [b if b.dtype == torch.int64 else b.double() for b in batches]
    order = []
    data = Calibrated(batches, call, str(tmp_path) if folder else None)
    for wrapper, inputs in walk(model, own, data):
        order.append(wrapper.name)
        layer = plain.get_submodule(wrapper.name)
        expected = inputs_of(plain, layer, doubles, call)
        for one, other in zip(inputs, expected, strict=True):
            assert torch.allclose(one.double(), other, atol=1e-4)
        rows = torch.cat([_rows(layer, value) for value in expected], -2)
        assert inputs.samples == rows.shape[-2]
        close(inputs.gram(), rows.mT @ rows)
        close(inputs.square_norms(), rows.square().sum(-2))
        close(inputs.largest(), rows.abs().amax(-2))
        close(inputs.means(), rows.abs().mean(-2))
        close(inputs.fitted.gram() + inputs.apart.gram(), rows.mT @ rows)
        close(inputs.rows(), rows)
        weight = inputs.weight()
        assert torch.equal(inputs.restored(weight), wrapper.weight)
        # What the algorithm does: later layers see it.
        wrapper.weight.mul_(1.1)
        layer.weight.mul_(1.1)
    assert len(order) == len(own) == len(set(order))
    assert list(tmp_path.iterdir()) == []


def close(one, other):
    assert one.shape == other.shape
    scale = max(float(other.abs().max()), 1.0) if other.numel() else 1.0
    assert torch.allclose(one.double(), other, atol=1e-4 * scale)


def _rows(layer, value):
    """What the layer's outputs are weighted sums of, by unfold."""
    if isinstance(layer, nn.Linear):
        return value.flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(value, layer._reversed_padding_repeated_twice, mode=mode)
    found = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    rows = found.transpose(1, 2).flatten(0, 1)
    if layer.groups == 1:
        return rows
    return rows.view(len(rows), layer.groups, -1).transpose(0, 1)


class Again(nn.Module):
    """One block runs three times, and two blocks hold one layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}) for _ in range(2)
        )
        self.again = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh())])
        self.first = nn.ModuleList([_Two(shared := nn.Linear(6, 6)), _Two(shared)])

    def forward(self, x):
        for _ in range(3):
            x = self.again[0](x)
            x = self.blocks[0]["b"](torch.tanh(self.blocks[0]["a"](x)))
        for block in self.first:
            x = block(x)
        return self.blocks[1]["b"](self.blocks[1]["a"](x))


class _Two(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.own, self.shared = nn.Linear(6, 6), shared

    def forward(self, x):
        return self.shared(torch.tanh(self.own(x)))


@torch.no_grad()
def test_what_runs_several_times_is_seen_each_time():
    model = Again()
    batches = [torch.randn(4, 6) for _ in range(2)]
    names = []
    for wrapper, inputs in walk(model, wrappers(model), Calibrated(batches)):
        names.append(wrapper.name)
        expected = inputs_of(model, wrapper.module, batches, call)
        rows = torch.cat(expected)
        assert inputs.samples == len(rows), wrapper.name
        assert torch.allclose(inputs.gram(), rows.T @ rows, atol=1e-4), wrapper.name
    assert sorted(names) == sorted(w.name for w in wrappers(model))


def test_a_block_runs_as_often_as_its_own_layers_need():
    model, batches = decoder(depth=6), tokens(3)
    ran = [0] * 6
    for number, layer in enumerate(model.layers):
        forward = layer.norm2.forward

        def counted(x, number=number, forward=forward):
            ran[number] += 1
            return forward(x)

        layer.norm2.forward = counted
    own = wrappers(model.layers)
    for wrapper in own:
        wrapper.name = f"layers.{wrapper.name}"
    for _, inputs in walk(model, own, Calibrated(batches)):
        inputs.gram()
    # Of each batch: gate and up, down, the block's output. The first batch beside that: one run of
    # the model to see the order. What is looked ahead with runs no block.
    assert ran[0] == 3 * 3 + 1
    assert max(ran) == ran[0]
    assert ran[-1] == 3 * 2 + 1  # nobody needs the last one's output


@torch.no_grad()
def test_a_part_of_a_block_that_is_done_runs_once_more_and_never_again():
    model, batches = parted(), [torch.randn(3, 6) for _ in range(4)]
    inner = model[0].mix["inner"]
    ran = []
    inner[1].register_forward_hook(lambda *_: ran.append(1))
    names = []
    for wrapper, inputs in walk(model, wrappers(model), Calibrated(batches)):
        inputs.gram()
        names.append((wrapper.name, len(ran)))
    runs = {name: count - 1 for name, count in names}  # one to see the order
    assert runs["0.mix.inner.2"] == 4  # up to the second layer of the part
    assert runs["0.mix.last"] == 8  # what the part puts out
    assert runs["2.mlp.down"] == 8


@torch.no_grad()
def test_a_part_runs_again_when_something_in_it_was_written_to():
    model, batches = parted(), [torch.randn(3, 6) for _ in range(4)]
    for wrapper, inputs in walk(model, wrappers(model), Calibrated(batches)):
        if wrapper.name == "0.mlp.up":
            before = list(inputs)
            model[0].mix["inner"][0].weight.mul_(2)
            expected = inputs_of(model, wrapper.module, batches, call)
            assert not torch.allclose(before[0], expected[0])
            for one, other in zip(inputs, expected, strict=True):
                assert torch.allclose(one, other)


def test_inputs_are_gone_when_the_walk_went_on():
    model, held = parted(), []
    for _, inputs in walk(model, wrappers(model), Calibrated([torch.randn(3, 6)])):
        held.append(inputs)
        if len(held) == 5:
            with pytest.raises(EngineError, match="in its turn only"):
                held[0].gram()


def test_blocks_are_left_alone_afterwards():
    model = decoder()
    state = copy.deepcopy(model.state_dict())
    model.train()
    faces = [sorted(vars(m)) for m in model.modules()]
    for _ in walk(model, wrappers(model), Calibrated(tokens())):
        pass
    assert [sorted(vars(m)) for m in model.modules()] == faces
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_padding_is_left_out_by_the_attention_mask():
    model, (batch,) = decoder(), tokens(1)
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    padded = [{"input_ids": batch, "attention_mask": mask}]
    for wrapper, inputs in walk(model, wrappers(model), Calibrated(padded)):
        (value,) = list(inputs)
        kept = value[mask != 0]
        assert inputs.samples == len(kept) == mask.sum()
        assert torch.allclose(inputs.gram(), kept.T @ kept, rtol=1e-4, atol=1e-4), wrapper.name


def test_layers_that_get_the_same_tensor_share_its_sums():
    model = decoder(depth=1)
    layers = walk(model, wrappers(model), Calibrated(tokens()))
    shared = {w.name: [other.name for other in i.shared] for w, i in layers}
    assert shared["layers.0.q"] == ["layers.0.q", "layers.0.k", "layers.0.v"]
    assert shared["layers.0.up"] == ["layers.0.gate", "layers.0.up"]
    assert shared["layers.0.down"] == ["layers.0.down"]


class Experts(nn.Module):
    """The second one is never chosen."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.experts[0](x) + self.experts[2](x[:1])


def test_an_expert_that_no_batch_reaches_gets_white_inputs_and_it_is_said():
    model = Experts()
    own, data = wrappers(model), Calibrated([torch.randn(4, 6)] * 2)

    def seen():
        return {w.name: (i.samples, i.gram(), i.square_norms()) for w, i in walk(model, own, data)}

    with pytest.warns(UserWarning, match=r'no calibration batch reached "experts.1"'):
        samples, gram, norms = seen()["experts.1"]
    assert samples == 0
    assert torch.equal(gram, torch.eye(6))
    assert torch.equal(norms, torch.ones(6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused_by_layer_and_batch(value):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    batches = [torch.randn(3, 4), torch.full((3, 4), value)]
    layers = walk(model, wrappers(model), Calibrated(batches))
    _, inputs = next(layers)
    message = r'layer "0" gets holds NaN or infinity in calibration batch 1'
    with pytest.raises(EngineError, match=message):
        inputs.gram()
    layers.close()
    assert "forward" not in vars(model[0])


def test_no_batches_and_one_that_does_not_fit():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(EngineError, match="got no batches"):
        list(walk(model, wrappers(model), Calibrated([])))
    with pytest.raises(EngineError, match="does not go through the model"):
        list(walk(model, wrappers(model), Calibrated([torch.randn(2, 3)])))


def test_a_layer_without_rows_says_so():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    own = wrappers(model, nn.Embedding, nn.Linear)
    _, inputs = next(walk(model, own, Calibrated([torch.tensor([1, 2])])))
    assert not inputs.has_rows
    with pytest.raises(EngineError, match='layer "0" is a Embedding'):
        inputs.gram()


@torch.no_grad()
def test_a_batch_of_fewer_rows_than_parts_has_none_apart():
    model = nn.Linear(6, 3)
    for _, inputs in walk(model, wrappers(model), Calibrated([torch.randn(2, 6)])):
        inputs.fitted.gram()
        assert (inputs.fitted.samples, inputs.apart.samples) == (2, 0)
        assert torch.equal(inputs.gram(), inputs.fitted.gram())
        assert torch.equal(inputs.apart.largest(), torch.ones(6))  # white, as where no batch comes
