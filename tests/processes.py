"""A function run by two processes of one gloo group, and what each of them reports."""

import torch


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
        return dict(results.get(timeout=60) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=20)
            process.kill()
