"""Two processes that see different data end with the same masks."""

import pytest
import torch
import torch.distributed as dist
from models import ConvNet, images, train_step
from processes import reports_of_two

from engine.algorithms import ActivationMeanRankFilterPruner, AGPPruner, LevelPruner


def worker(rank: int, file: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        report = {}
        for name, make in {
            "activation": lambda m, o: ActivationMeanRankFilterPruner(
                m, [{"sparsity": 0.5, "op_types": ["default"]}], o, statistics_batch_num=1
            ),
            "level": lambda m, o: LevelPruner(m, [{"sparsity": 0.5, "op_types": ["default"]}], o),
            "agp": lambda m, o: AGPPruner(
                m, [{"final_sparsity": 0.8, "end_epoch": 2, "op_types": ["default"]}], o, "taylor"
            ),
        }.items():
            torch.manual_seed(0)
            model = ConvNet()
            parallel = torch.nn.parallel.DistributedDataParallel(
                model, gradient_as_bucket_view=name == "agp"
            )
            optimizer = torch.optim.AdamW(parallel.parameters(), lr=0.05, weight_decay=0.1)
            pruner = make(model, optimizer)
            pruner.compress()
            for epoch in range(3):
                pruner.update_epoch(epoch)
                for batch in range(2):
                    data = images(seed=10 * rank + batch) * (1 + 2 * rank)
                    train_step(parallel, optimizer, data)
            report[name] = [
                (w.weight_mask.flatten().tolist(), w.weight.detach().flatten().tolist())
                for w in pruner.get_modules_wrapper()
            ]
            optimizer.zero_grad()
            parallel(images(seed=rank)).square().sum().backward()
            report[f"{name} gradients"] = [
                w.weight.grad.flatten().tolist() for w in pruner.get_modules_wrapper()
            ]
            if name == "activation":
                report["statistics"] = [w.statistic.tolist() for w in pruner.get_modules_wrapper()]
        results.put((rank, report))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_masks_are_equal_in_all_processes(tmp_path):
    reports = reports_of_two(worker, tmp_path / "meet")
    assert reports[0]["statistics"] != reports[1]["statistics"]
    for name in ("activation", "level", "agp"):
        assert reports[0][name] == reports[1][name]
        masks = [mask for mask, _ in reports[0][name]]
        assert all(0 < sum(mask) < len(mask) for mask in masks)
        for mask, weight in reports[0][name]:
            assert all(w == 0 for m, w in zip(mask, weight, strict=True) if m == 0)
        gradients = reports[0][f"{name} gradients"]
        assert gradients == reports[1][f"{name} gradients"]
        for mask, gradient in zip(masks, gradients, strict=True):
            assert all(g == 0 for m, g in zip(mask, gradient, strict=True) if m == 0)
            assert any(gradient)
