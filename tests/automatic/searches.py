"""Each automatic pruner with settings that make it end soon."""

import torch

import engine

QUICK = {
    "sensitivity": {"acc_drop_threshold": 0.02, "sparsity_per_iter": 0.3},
    "net_adapt": {"sparsity_per_iteration": 0.2},
    "simulated_annealing": {"cool_down_rate": 0.5, "tries_per_temperature": 2},
    "admm": {"num_iterations": 3, "training_epochs": 1},
    "auto_compress": {
        "num_iterations": 2,
        "cool_down_rate": 0.3,
        "tries_per_temperature": 1,
        "admm_num_iterations": 2,
        "admm_training_epochs": 1,
    },
    "amc": {"train_episode": 8, "warmup": 3, "bsize": 8},
}
SEARCHING = [name for name in QUICK if name != "admm"]
TYPES = ["Conv2d", "Linear"]


def search(model, name, evaluator, trainer, **given):
    """Return the pruner, not yet searching, with SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    entry = {"sparsity": given.pop("sparsity", 0.5), "op_types": given.pop("op_types", TYPES)}
    if "op_names" in given:
        entry["op_names"] = given.pop("op_names")
    arguments = {"dummy_input": torch.randn(2, 3, 8, 8), "verbose": False, **QUICK[name], **given}
    config = {"compressor": name, "config_list": [entry]}
    return engine.create_compressor(
        model, config, optimizer, evaluator=evaluator, trainer=trainer, **arguments
    )
