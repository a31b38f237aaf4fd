"""A function run by two processes of one gloo group, and what each of them reports."""

from contextlib import contextmanager

import torch
from torch import distributed


@contextmanager
def group_of_two(rank, meet):
    """Within, the process is one of the group; it leaves when the other has come as far."""
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def reports_of_two(worker, meet):
    """Return ``{rank: report}`` of ``worker(rank, meet, results)``, which puts (rank, report).

    ``meet`` is the path of a file that does not exist yet, where the processes find each other.
    """
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=worker, args=(rank, str(meet), results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        reports = dict(results.get(timeout=120) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=20)
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return reports
