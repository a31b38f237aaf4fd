"""Compression inside Lightning's Trainer."""

import pytest
import torch
from torch import nn

from engine import EngineError
from engine.algorithms import LevelPruner

lightning = pytest.importorskip("lightning.pytorch")
from engine.integrations.lightning import Compression  # noqa: E402

LAYERS = {"op_types": ["Conv1d", "Linear"]}
ACTIVATIONS = {**LAYERS, "quant_types": ["weight", "input"], "quant_bits": 8}
FILTERS = [{"op_types": ["Conv1d"], "sparsity": 0.5}]
CONFIGS = {
    "agp": [{**LAYERS, "final_sparsity": 0.75, "end_epoch": 2}],
    "qat": [ACTIVATIONS],
    "lsq": [ACTIVATIONS],
    "lsq_plus": [ACTIVATIONS],
    "level": [{**LAYERS, "sparsity": 0.5}],
    "l1_filter": FILTERS,
    "taylor_fo_weight_filter": FILTERS,
    "slim": [{"op_types": ["BatchNorm1d"], "sparsity": 0.5}],
    "activation_mean_rank_filter": FILTERS,
    "dorefa": [{**LAYERS, "quant_types": ["weight"], "quant_bits": 4}],
}
QUICK = ("agp", "qat", "lsq")


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
        )

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def data():
    generator = torch.Generator().manual_seed(1)
    # All batches are alike: within an epoch Lightning goes on with the first one.
    x = torch.randn(8, 2, 8, generator=generator).repeat(6, 1, 1)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, (x[:, 0].sum(1) > 0).long()), batch_size=8
    )


def fitted(folder, name, resume=None, **arguments):
    callback = Compression({"compressor": name, "config_list": CONFIGS[name]}, **arguments)
    saving = lightning.callbacks.ModelCheckpoint(
        folder, "{step}", every_n_train_steps=4, save_top_k=-1
    )
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[callback, saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    module = Module()
    trainer.fit(module, data(), ckpt_path=None if resume is None else str(resume))
    return trainer, module, callback.compressor


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CONFIGS]
)
@pytest.mark.filterwarnings("ignore:.*")
def test_resumed_it_is_the_same_bit_for_bit(name, tmp_path):
    _, module, compressor = fitted(tmp_path / "whole", name)
    for step in (4, 12):  # within the first epoch, and at the end of the second
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        _, again, resumed = fitted(tmp_path / "again", name, checkpoint)
        for key, value in module.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), (step, key)
        assert str(resumed.state_dict()) == str(compressor.state_dict())


@pytest.mark.filterwarnings("ignore:.*")
def test_epochs_are_told_sparsity_is_logged_and_the_end_is_the_users(tmp_path):
    ended = []
    trainer, module, pruner = fitted(tmp_path, "agp", at_end=ended.append)
    assert ended == [pruner]
    weights = [module.net[0].weight, module.net[4].weight]
    gone = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert float(trainer.callback_metrics["sparsity"]) == pytest.approx(gone)
    assert gone == pytest.approx(0.75, abs=0.01)


def test_what_does_not_fit_says_so():
    pruner = LevelPruner(Module(), [{"op_types": ["Linear"], "sparsity": 0.5}])
    trainer = lightning.Trainer(max_epochs=1, callbacks=[Compression(pruner)], logger=False)
    with pytest.raises(EngineError, match="another model"):
        trainer.fit(Module(), data())
    with pytest.raises(EngineError, match="has not begun"):
        Compression({}).load_state_dict({})
