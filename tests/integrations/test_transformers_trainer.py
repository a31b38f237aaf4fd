"""Compression inside Hugging Face's Trainer."""

import copy

import pytest
import torch
from torch import nn

import engine
from engine import EngineError

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
from engine.integrations.given import FILE_NAME  # noqa: E402
from engine.integrations.transformers import compress  # noqa: E402

SAMPLES, BATCH = 48, 8
STEPS = SAMPLES // BATCH  # of an epoch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8)
        self.relu, self.fc = nn.ReLU(), nn.Linear(48, 3)

    def forward(self, x, labels=None):
        logits = self.fc(self.relu(self.norm(self.conv(x))).flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Data(torch.utils.data.Dataset):
    def __init__(self, seed=1):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(SAMPLES, 2, 8, generator=generator)
        self.y = (self.x[:, 0].sum(1) > 0).long() + (self.x[:, 1, 0] > 0).long()

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.y[index]}


def made(folder, **arguments):
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 3,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 4,
        "logging_steps": STEPS,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = transformers.TrainingArguments(**{**settings, **arguments})
    return transformers.Trainer(Net(), args, train_dataset=Data(), eval_dataset=Data(2))


def weights(**entry):
    return {"quant_types": ["weight", "input"], "quant_bits": 8, **entry}


LAYERS = {"op_types": ["Conv1d", "Linear"]}
GRADUAL = [{**LAYERS, "final_sparsity": 0.75, "end_epoch": 2}]
HALF = [{**LAYERS, "sparsity": 0.5}]
FILTERS = [{"op_types": ["Conv1d"], "sparsity": 0.5}]
ALGORITHMS = {
    "agp": {"config_list": GRADUAL},
    "linear": {"config_list": GRADUAL},
    "level": {"config_list": HALF},
    "l1_filter": {"config_list": FILTERS},
    "l2_filter": {"config_list": FILTERS},
    "fpgm": {"config_list": FILTERS},
    "taylor_fo_weight_filter": {"config_list": FILTERS},
    "slim": {"config_list": [{"op_types": ["BatchNorm1d"], "sparsity": 0.5}]},
    "activation_apoz_rank_filter": {"config_list": FILTERS},
    "activation_mean_rank_filter": {"config_list": FILTERS},
    "naive": {"config_list": [{**LAYERS, "quant_types": ["weight"], "quant_bits": 8}]},
    "qat": {"config_list": [weights(**LAYERS)]},
    "lsq": {"config_list": [weights(**LAYERS)]},
    "lsq_plus": {"config_list": [weights(**LAYERS)]},
    "dorefa": {"config_list": [{**LAYERS, "quant_types": ["weight"], "quant_bits": 4}]},
    "bnn": {"config_list": [{**LAYERS, "quant_types": ["weight"], "quant_bits": 1}]},
}


def trained(folder, name, resume=None, **arguments):
    trainer = made(folder, **arguments)
    compressor = compress(trainer, {"compressor": name, **ALGORITHMS[name]})
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, compressor


def same(one, other):
    """Two states of models or compressors are equal, bit for bit."""
    one, other = (torch.utils._pytree.tree_flatten(each) for each in (one, other))
    assert one[1] == other[1]
    for first, second in zip(one[0], other[0], strict=True):
        if isinstance(first, torch.Tensor):
            assert torch.equal(first, second)
        else:
            assert first == second


QUICK = ("agp", "lsq")
MARKS = {name: () if name in QUICK else pytest.mark.slow for name in ALGORITHMS}


@pytest.mark.parametrize("name", [pytest.param(n, marks=m) for n, m in MARKS.items()])
def test_resumed_it_is_the_same_bit_for_bit(name, tmp_path):
    trainer, compressor = trained(tmp_path / "whole", name)
    for step in (4, 12):  # within the first epoch, and at the end of the second
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        assert (checkpoint / FILE_NAME).is_file()
        again, resumed = trained(tmp_path / "again", name, checkpoint)
        same(again.model.state_dict(), trainer.model.state_dict())
        same(resumed.state_dict(), compressor.state_dict())


def test_a_schedule_hears_of_epochs_and_the_log_says_what_is_gone(tmp_path):
    trainer, pruner = trained(tmp_path, "agp")
    logged = [entry["sparsity"] for entry in trainer.state.log_history if "loss" in entry]
    total = sum(w.weight.numel() for w in pruner.wrappers)
    for epoch, sparsity in enumerate(logged):
        wanted = 0.75 * (1 - (1 - epoch / 2) ** 3)  # Zhu and Gupta 2017, eq. 1
        assert abs(sparsity - wanted) <= len(pruner.wrappers) / total
    kept = sum(int((w.weight != 0).sum()) for w in pruner.wrappers)
    assert 1 - kept / total == logged[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
        {"bf16": True},
        {"optim": "adafactor"},
        {"weight_decay": 0.1, "lr_scheduler_type": "cosine"},
    ],
)
def test_what_is_masked_is_zero_however_it_trains(arguments, tmp_path):
    trainer, pruner = trained(tmp_path, "agp", **arguments)
    for wrapper in pruner.wrappers:
        assert bool((wrapper.weight[wrapper.weight_mask == 0] == 0).all())
    assert trainer.state.global_step > 0


def test_the_best_model_has_the_masks_that_it_was_trained_with(tmp_path):
    best = {"metric_for_best_model": "score", "load_best_model_at_end": True}
    epochs = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    trainer = made(tmp_path, greater_is_better=True, **best, **epochs)
    evaluated = []

    def score(prediction):
        evaluated.append(copy.deepcopy(trainer.model.state_dict()))
        return {"score": -abs(len(evaluated) - 2)}  # the second epoch's is best

    trainer.compute_metrics = score
    ended = []
    config = {"compressor": "agp", **ALGORITHMS["agp"]}
    pruner = compress(trainer, config, at_end=lambda c: ended.append(copy.deepcopy(c.state_dict())))
    trainer.train()
    assert len(evaluated) == 3
    same(trainer.model.state_dict(), evaluated[1])
    for wrapper in pruner.wrappers:
        assert torch.equal(wrapper.weight_mask, (wrapper.weight != 0).to(wrapper.weight_mask))
    (at_end,) = ended
    same(at_end, pruner.state_dict())


def test_a_compressor_that_is_made_can_be_given(tmp_path):
    trainer = made(tmp_path)
    config = {"compressor": "level", **ALGORITHMS["level"]}
    pruner = engine.create_compressor(trainer.model, config)
    assert compress(trainer, pruner) is pruner
    trainer.train()
    assert float((trainer.model.fc.weight == 0).float().mean()) == 0.5
    other = made(tmp_path / "other")
    with pytest.raises(EngineError, match="works on another model"):
        compress(other, pruner)
    pruner = engine.create_compressor(other.model, config)
    with pytest.raises(EngineError, match="'dummy_input'"):
        compress(other, pruner, dummy_input=torch.ones(1))


def test_what_cannot_be_compressed_says_so(tmp_path):
    config = {"compressor": "level", **ALGORITHMS["level"]}
    args = made(tmp_path).args
    with pytest.raises(EngineError, match="model_init"):
        compress(transformers.Trainer(args=args, model_init=Net, train_dataset=Data()), config)
    plain = made(tmp_path)
    plain.train()
    with pytest.raises(EngineError, match="trained already"):
        compress(plain, config)
    with pytest.raises(EngineError, match=rf"has no {FILE_NAME}"):
        trained(tmp_path / "new", "level", tmp_path / "checkpoint-4")
