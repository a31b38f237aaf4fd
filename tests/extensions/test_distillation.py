"""Distillation: gradients against autograd, loops of all kinds, state, teachers, refusals."""

import copy
import io
import warnings

import pytest
import torch
from processes import group_of_two, reports_of_two
from torch import distributed, nn
from torch.nn import functional as F

import engine
from engine import EngineError, hookimpl
from engine.extensions import Distillation

LEVEL = {"compressor": "level", "config_list": [{"op_types": ["Linear"], "sparsity": 0.5}]}
QAT = {
    "compressor": "qat",
    "config_list": [{"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 3}],
}
AGP = {
    "compressor": "agp",
    "config_list": [
        {"op_types": ["Linear"], "final_sparsity": 0.5, "initial_sparsity": 0.3, "end_epoch": 2}
    ],
}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 5)).double()


def data(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 5, (count,), generator=generator)


def distilled(model, config=LEVEL, optimizer=None, **options):
    extension = Distillation(**options)
    compressor = engine.create_compressor(model, config, optimizer, extensions=[extension])
    compressor.compress()
    return compressor


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def softened(logits, temperature):
    return (logits / temperature).softmax(-1)


def divergence(student, teacher, temperature=2.0, weight=1.0):
    """The formula, the long way."""
    p, q = softened(teacher, temperature), softened(student, temperature)
    each = (p * (p.log() - q.log())).sum(-1)
    return weight * temperature**2 * each.mean()


@pytest.mark.parametrize("config", [LEVEL, QAT, AGP], ids=["level", "qat", "agp"])
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (3.0, 0.7)])
def test_gradients_are_those_of_the_formula(config, temperature, weight):
    model, (x, y) = net(), data()
    teacher = copy.deepcopy(model)
    compressor = distilled(model, config, temperature=temperature, weight=weight)
    compressor.loss(F.cross_entropy(model(x), y)).backward()
    found = gradients(model)
    model.zero_grad()
    student = model.eval()(x)  # nothing is added in evaluation
    with torch.no_grad():
        logits = teacher(x)
    whole = F.cross_entropy(student, y) + divergence(student, logits, temperature, weight)
    assert compressor.loss(whole) is whole
    whole.backward()
    for own, expected in zip(found, gradients(model), strict=True):
        assert torch.allclose(own, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(student, logits)


def test_hidden_states():
    model, (x, y) = net(), data()
    teacher = copy.deepcopy(model)
    compressor = distilled(model, weight=0.0, hidden=["1", "re:[2]"], hidden_weight=0.6)
    compressor.loss(F.cross_entropy(model(x), y)).backward()
    found = gradients(model)
    model.zero_grad()
    middle = model.eval()[:2](x)
    with torch.no_grad():
        theirs = teacher[:2](x)
    parts = (middle - theirs).square().mean(), (model[2](middle) - teacher(x)).square().mean()
    (F.cross_entropy(model[2](middle), y) + 0.3 * (parts[0] + parts[1])).backward()
    for own, expected in zip(found, gradients(model), strict=True):
        assert torch.allclose(own, expected, rtol=1e-10, atol=1e-12)


def test_scaled_and_accumulated_it_is_that_of_the_whole_batch():
    whole, parts = net(), net()
    x, y = data()
    compressor = distilled(whole)
    compressor.loss(F.cross_entropy(whole(x), y)).backward()
    compressor = distilled(parts)
    for some, labels in zip(x.split(2), y.split(2), strict=True):
        loss = compressor.loss(F.cross_entropy(parts(some), labels))
        (1024 * loss / 4).backward()
    for own, expected in zip(gradients(parts), gradients(whole), strict=True):
        assert torch.allclose(own / 1024, expected, rtol=1e-10, atol=1e-12)


def test_two_forwards_of_one_loss_both_count():
    model, (x, y) = net(), data()
    teacher = copy.deepcopy(model)
    compressor = distilled(model)
    loss = F.cross_entropy(model(x[:4]), y[:4]) + F.cross_entropy(model(x[4:]), y[4:])
    total = compressor.loss(loss)
    student = model.eval()(x)
    with torch.no_grad():
        logits = teacher(x)
    halves = sum(divergence(student[s], logits[s]) for s in (slice(4), slice(4, 8)))
    assert float((total - loss).detach()) == pytest.approx(float(halves.detach()), rel=1e-12)


def test_evaluation_adds_nothing():
    model, (x, _) = net(), data()
    compressor = distilled(model, hidden=["1"])
    loss = torch.zeros(())
    with torch.no_grad():
        model(x)
    model.eval()(x)
    assert compressor.loss(loss) is loss
    compressor.unwrap()
    model.train()(x)
    assert compressor.loss(loss) is loss
    assert not model._forward_hooks
    assert not model[1]._forward_hooks


def test_a_forgotten_line_is_told_once():
    model, (x, y) = net(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compressor = distilled(model, optimizer=optimizer)
    F.cross_entropy(model(x), y).backward()
    with pytest.warns(UserWarning, match=r"left out of this step\n  write loss = compressor.loss"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    loss = torch.zeros(())
    assert compressor.loss(loss) is loss  # of steps that are over


@pytest.mark.parametrize("order", ["after compress", "before compress"])
def test_resumed_the_teacher_is_the_dense_model_of_then(order):
    """A fresh model is another dense model: what it learns from comes with the state."""
    ends = []
    for resumed in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        compressor = distilled(model, AGP, optimizer)
        for step in range(6):
            if resumed and step == 3:
                stream = io.BytesIO()
                torch.save([model.state_dict(), compressor.state_dict()], stream)
                stream.seek(0)
                state, own = torch.load(stream, weights_only=True)
                model = net(seed=1)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                compressor = engine.create_compressor(
                    model, AGP, optimizer, extensions=[Distillation()]
                )
                if order == "before compress":
                    model.load_state_dict(state)
                    compressor.load_state_dict(own)
                compressor.compress()
                if order == "after compress":
                    compressor.load_model_state_dict(state)
                    compressor.load_state_dict(own)
            x, y = data(seed=step)
            optimizer.zero_grad()
            compressor.loss(F.cross_entropy(model(x), y)).backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.parametrize("how", ["module", "named"])
def test_another_teacher(how, tmp_path, monkeypatch):
    (tmp_path / "teachers_of_tests.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def large():\n"
        "    torch.manual_seed(5)\n"
        "    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 5)).double()\n"
        "def none():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    large = __import__("teachers_of_tests").large()
    model, (x, y) = net(), data()
    if how == "module":
        compressor = distilled(model, teacher=large)
    else:
        options = {"teacher": "teachers_of_tests:large", "temperature": 2.0}
        config = {**LEVEL, "extensions": [{"distillation": options}]}
        compressor = engine.create_compressor(model, config)
        compressor.compress()
        with pytest.raises(EngineError, match=r"returned a int, an nn\.Module is needed"):
            Distillation("teachers_of_tests:none")
    loss = F.cross_entropy(model(x), y)
    extra = compressor.loss(loss) - loss
    expected = divergence(model.eval()(x), large(x)).detach()
    assert float(extra.detach()) == pytest.approx(float(expected), rel=1e-12)
    assert compressor.state_dict()["extensions"] == {"Distillation": {}}
    assert all(p.requires_grad for p in large.parameters())


def test_what_does_not_fit_is_said():
    model = net()
    with pytest.raises(EngineError, match=r'hidden: the model has no layer "3"\n  layers are:'):
        distilled(model, hidden=["3"])
    with pytest.raises(EngineError, match=r'hidden: "re:\[" is no regular expression'):
        distilled(model, hidden=["re:["])
    with pytest.raises(EngineError, match="the teacher is the model itself"):
        distilled(model, teacher=model)
    with pytest.raises(EngineError, match='the teacher has no module "2"'):
        distilled(model, teacher=nn.Sequential(nn.Linear(6, 5)), hidden=["2"])
    assert not model._forward_hooks
    distilled(model, teacher=nn.Linear(6, 3).double())
    with pytest.raises(
        EngineError, match=r"put out have shapes \(8, 5\) in the model and \(8, 3\)"
    ):
        model(data()[0])


def test_an_answer_that_is_no_number():
    class Wrong:
        @hookimpl
        def extra_loss(self, output):
            return output

    model = net()
    engine.create_compressor(model, LEVEL, extensions=[Wrong()]).compress()
    with pytest.raises(EngineError, match=r"extra_loss returned \(8, 5\)\n  it must return one"):
        model(data()[0])


def test_a_compiled_model_trains_the_same():
    ends = []
    for compiled in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        compressor = distilled(model, optimizer=optimizer, hidden=["1"])
        forward = torch.compile(model, backend="eager") if compiled else model
        for step in range(3):
            x, y = data(seed=step)
            optimizer.zero_grad()
            compressor.loss(F.cross_entropy(forward(x), y)).backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert all(torch.allclose(v, ends[1][key], atol=1e-12) for key, v in ends[0].items())


@pytest.mark.parametrize("use_mask", [False, True])
def test_a_model_with_a_loss_of_its_own_has_it_added_there(use_mask):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=30,
    )
    model = transformers.LlamaForCausalLM(config).double().train()
    teacher = copy.deepcopy(model).eval()
    batch = {"input_ids": torch.randint(0, 30, (2, 7))}
    if use_mask:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][1, 4:] = 0
    compressor = distilled(model, hidden=[r"re:model\.layers\.\d"], hidden_weight=0.4)
    output = model(**batch, labels=batch["input_ids"])
    assert compressor.loss(output.loss) is output.loss
    assert output["loss"] is output.loss
    output.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    plain = model.eval()(**batch, labels=batch["input_ids"], output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(**batch, output_hidden_states=True)
    seen = torch.ones(2, 7, dtype=torch.bool)
    if use_mask:
        seen = batch["attention_mask"] != 0
    loss = plain.loss + divergence(plain.logits[seen], theirs.logits[seen])
    own, other = plain.hidden_states[1], theirs.hidden_states[1]
    loss = loss + 0.2 * (own - other)[seen].square().mean()
    # The last hidden state that transformers gives is behind the norm: by hooks.
    last = []
    for each in (model, teacher):
        hook = each.model.layers[1].register_forward_hook(lambda m, a, out: last.append(out))
        each.eval()(**batch)
        hook.remove()
    loss = loss + 0.2 * (last[0] - last[1].detach())[seen].square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-6, atol=1e-9), name


def in_parallel(rank, meet, results):
    with group_of_two(rank, meet):
        model = net()
        compressor = distilled(model, hidden=["1"])
        wrapped = nn.parallel.DistributedDataParallel(model)
        x, y = data()
        loss = compressor.loss(F.cross_entropy(wrapped(x[rank::2]), y[rank::2]))
        loss.backward()
        file = f"{meet}{rank}.pt"
        torch.save(gradients(model), file)
        results.put((rank, file))


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_gradients_of_one(tmp_path):
    files = reports_of_two(in_parallel, tmp_path / "meet")
    model, (x, y) = net(), data()
    distilled(model, hidden=["1"]).loss(F.cross_entropy(model(x), y)).backward()
    for rank in range(2):
        found = torch.load(files[rank])
        for own, expected in zip(found, gradients(model), strict=True):
            assert torch.allclose(own, expected, rtol=1e-10, atol=1e-12)
