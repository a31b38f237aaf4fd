"""What is removed has no gradient, so that no norm of gradients counts it."""

import copy
import io

import pytest
import torch
from models import ConvNet, images, mlp, train_step
from torch import nn
from torch.nn.utils import clip_grad_norm_, prune

from engine import Pruner
from engine.algorithms import AGPPruner, L1FilterPruner, LevelPruner

LINEAR = [{"op_types": ["Linear"], "sparsity": 0.75}]


def reference_of(dense, pruner):
    """Return ``dense`` with the masks of ``pruner`` multiplied in by the forward pass."""
    model = copy.deepcopy(dense)
    for wrapper in pruner.get_modules_wrapper():
        for name in ("weight", "bias"):
            if (mask := wrapper.mask(name)) is not None:
                prune.custom_from_mask(model.get_submodule(wrapper.name), name, mask)
    return model


def batch(seed=0):
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))


def backward(model, x, **options):
    loss = model(x).square().mean()
    loss.backward(**options)
    return loss


def assert_masked(pruner):
    for wrapper in pruner.get_modules_wrapper():
        gradient = wrapper.weight.grad
        assert not gradient[wrapper.weight_mask == 0].any()
        assert gradient[wrapper.weight_mask == 1].any()


@pytest.mark.parametrize(
    ("cls", "types"), [(LevelPruner, ["Conv2d", "Linear"]), (L1FilterPruner, ["Conv2d"])]
)
def test_clipping_is_that_of_masks_in_the_forward_pass(cls, types):
    dense = ConvNet()
    model = copy.deepcopy(dense)
    pruner = cls(model, [{"op_types": types, "sparsity": 0.75}])
    pruner.compress()
    reference = reference_of(dense, pruner)
    norms = []
    for net in (model, reference):
        backward(net, images())
        norms.append(clip_grad_norm_(net.parameters(), 1e-2))
    assert torch.allclose(norms[0], norms[1])
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        other = theirs.get(name, theirs.get(f"{name}_orig"))
        assert torch.allclose(parameter.grad, other.grad, atol=1e-9)


def test_accumulated_and_kept_graphs():
    model = mlp()
    pruner = LevelPruner(model, LINEAR)
    pruner.compress()
    loss = backward(model, batch(), retain_graph=True)
    loss.backward()
    once = mlp()
    once.load_state_dict(model.state_dict())
    backward(once, batch())
    assert_masked(pruner)
    assert torch.allclose(model[0].weight.grad, 2 * once[0].weight.grad * (model[0].weight != 0))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_a_graph_of_the_gradient_is_that_of_the_masked_one():
    model = mlp()
    pruner = LevelPruner(model, LINEAR)
    pruner.compress()
    reference = reference_of(mlp(), pruner)
    for place in (0, 2):
        with torch.no_grad():
            reference[place].weight_orig.copy_(model[place].weight)
            reference[place].bias.copy_(model[place].bias)
    penalties = []
    for net in (model, reference):
        backward(net, batch(), create_graph=True)
        weights = [p for name, p in net.named_parameters() if "weight" in name]
        penalty = sum(weight.grad.square().sum() for weight in weights)
        assert penalty.requires_grad
        penalties.append(torch.autograd.grad(penalty, net[0].bias)[0])
    assert torch.allclose(penalties[0], penalties[1])


def test_parameters_without_a_gradient_and_frozen_ones():
    model = mlp(8, 8, 8, 4)
    model[2].weight.requires_grad_(False)
    pruner = LevelPruner(model, LINEAR)
    pruner.compress()
    assert not model[2].weight.requires_grad
    model[:2](batch()).sum().backward()
    assert model[4].weight.grad is None
    model[2].weight.requires_grad_(True)
    backward(model, batch())
    assert_masked(pruner)


def test_sparse_gradients_of_an_embedding():
    torch.manual_seed(0)
    model = nn.Embedding(12, 6, sparse=True)
    pruner = LevelPruner(nn.Sequential(model), [{"op_types": ["Embedding"], "sparsity": 0.5}])
    pruner.compress()
    (model(torch.tensor([1, 3, 1])) - 1).square().sum().backward()
    gradient = model.weight.grad.to_dense()
    assert not gradient[model.weight == 0].any()
    assert gradient[1][model.weight[1] != 0].all()


def test_scaled_gradients():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = LevelPruner(model, LINEAR, optimizer)
    pruner.compress()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(batch()).square().mean()).backward()
    scaler.unscale_(optimizer)
    assert_masked(pruner)
    scaler.step(optimizer)
    assert all((w.weight[w.weight_mask == 0] == 0).all() for w in pruner.get_modules_wrapper())


def test_compiled_models():
    model = mlp()
    pruner = LevelPruner(model, LINEAR)
    pruner.compress()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    backward(compiled, batch())
    assert_masked(pruner)


def test_new_masks_and_replaced_parameters_are_followed():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    entry = {"op_types": ["Linear"], "final_sparsity": 0.8, "end_epoch": 3}
    pruner = AGPPruner(model, [entry], optimizer)
    pruner.compress()
    for epoch in range(4):
        pruner.update_epoch(epoch)
        for seed in range(2):
            train_step(model, optimizer, batch(seed))
        train_step(model, optimizer, batch())
        if epoch:
            assert_masked(pruner)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(2):
        train_step(model, optimizer, batch(seed))
    optimizer.zero_grad()
    backward(model, batch())
    assert_masked(pruner)


def test_detached_and_copied_models_have_gradients_as_they_come():
    model = mlp()
    pruner = LevelPruner(model, LINEAR)
    pruner.compress()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), torch.load(buffer, weights_only=False)]
    pruner.unwrap(bake=True)
    for net in (model, *copies):
        backward(net, batch())
        assert net[0].weight.grad[net[0].weight == 0].any()


class Regrowing(Pruner):
    """Keeps the weights whose gradients are largest, removed or not, as RigL grows them."""

    def calc_mask(self, wrapper, sparsity):
        gradient = wrapper.weight.grad
        if gradient is None:
            return {"weight_mask": torch.ones_like(wrapper.weight)}
        return {"weight_mask": gradient.abs() > gradient.abs().quantile(sparsity)}


class Standing(Regrowing):
    one_shot = True
    dense_gradients = True


class Masked(Regrowing):
    dense_gradients = False


@pytest.mark.parametrize(("cls", "dense"), [(Regrowing, True), (Standing, True), (Masked, False)])
def test_a_pruner_says_whether_it_needs_them(cls, dense):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = cls(model, LINEAR, optimizer)
    pruner.compress()
    train_step(model, optimizer, batch())
    pruner.update_masks(every_layer=True)
    optimizer.zero_grad()
    backward(model, batch())
    assert bool(model[0].weight.grad[model[0].weight == 0].any()) == dense
