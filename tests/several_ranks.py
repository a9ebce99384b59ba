"""A function run by several processes at once, that meet by gloo."""

import contextlib
import multiprocessing
import pickle
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from fastnas.runs.ranks import Ranks

# Forked from a server that has imported all of it once: no process waits two seconds for torch.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.several_ranks", "fastnas.search", "fastnas.retrain"])


def on_ranks(size, function, *arguments):
    """What ``function(ranks, *arguments)`` returns on each of ``size`` ranks; an exception is returned, too."""
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(
                target=_rank, args=(theirs, folder, rank, size, function, arguments), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results = []
        for pipe in pipes:
            assert pipe.poll(60), "a rank hangs"
            try:
                results.append(pickle.loads(pipe.recv_bytes()))
            except EOFError:
                results.append(None)  # it was killed
        for process in processes:
            process.join(20)
            assert process.exitcode is not None, "a rank does not end"
        return results


def _rank(pipe, folder, rank, size, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{Path(folder) / 'meeting'}", rank=rank, world_size=size
    )
    try:
        result = function(Ranks(rank, size), *arguments)
    except Exception as error:
        result = error
    pipe.send_bytes(pickle.dumps(result))  # not send: tensors would come as files of a process that has ended
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()
