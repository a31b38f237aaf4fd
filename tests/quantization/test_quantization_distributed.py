"""Two processes that see different data have the same grids."""

import pytest
import torch
import torch.distributed as dist
from models import mlp, train_step
from processes import reports_of_two

from engine.algorithms import LSQPlusQuantizer, PTQQuantizer, QAT_Quantizer
from engine.quantization.observers import OBSERVERS

ENTRY = {"op_types": ["Linear"], "quant_types": ["weight", "input"], "quant_bits": 4}
DECAY = 0.9


def batch(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * rank + step)
    return torch.randn(16, 8, generator=generator) * (1 + 2 * rank)


def worker(rank: int, file: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        report = {}
        for name, cls, arguments in (
            ("qat", QAT_Quantizer, {"ema_decay": DECAY}),
            ("lsq_plus", LSQPlusQuantizer, {}),
        ):
            torch.manual_seed(0)
            model = mlp(8, 6, 3)
            parallel = torch.nn.parallel.DistributedDataParallel(model)
            optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
            quantizer = cls(model, [ENTRY], optimizer, **arguments)
            quantizer.compress()
            for step in range(3):
                train_step(parallel, optimizer, batch(rank, step))
            report[name] = {
                key: value.tolist()
                for wrapper in quantizer.wrappers
                for key, value in (
                    *((f"{wrapper.name} {k}", v) for k, v in wrapper.named_buffers()),
                    *((f"{wrapper.name} {k}", v) for k, v in wrapper.named_parameters()),
                )
            }
            report[f"{name} weights"] = [p.flatten().tolist() for p in model.parameters()]
        for name in OBSERVERS:
            model = mlp(8, 3)
            quantizer = PTQQuantizer(model, [{**ENTRY, "quant_types": ["input"]}], observer=name)
            quantizer.compress()
            quantizer.calibrate([batch(rank, step) for step in range(2)])
            report[name] = quantizer.wrappers[0].input_range.tolist()
        results.put((rank, report))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_ranges_and_learned_steps_are_equal_in_all_processes(tmp_path):
    reports = reports_of_two(worker, tmp_path / "meet")
    assert reports[0] == reports[1]
    # The average of the processes' moving averages is that of their mean extremes.
    low = high = None
    for step in range(3):
        now = [batch(rank, step).double().aminmax() for rank in range(2)]
        ends = [sum(each[side].item() for each in now) / 2 for side in (0, 1)]
        if low is None:
            low, high = ends
        else:
            low, high = DECAY * low + (1 - DECAY) * ends[0], DECAY * high + (1 - DECAY) * ends[1]
    assert reports[0]["qat"]["0 input_range"] == pytest.approx([low, high], rel=1e-5)
    # Calibration: as if one process had seen all batches, in any order.
    for name in ("min_max", "percentile", "mse", "entropy"):
        observer = OBSERVERS[name]()
        for rank in range(2):
            for step in range(2):
                observer.observe(batch(rank, step))
        scheme = QAT_Quantizer(mlp(8, 3), [ENTRY]).wrappers[0].grids["input"].scheme
        want = [end.item() for end in observer.limits(scheme)]
        assert reports[0][name] == pytest.approx(want), name
