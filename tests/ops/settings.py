"""An op under other numbers of threads or on a device without a kernel."""

import torch

# torch.library.opcheck of ops that write into an argument and return a list of tensors: torch.compile takes none such
NOT_COMPILED = ("test_schema", "test_autograd_registration", "test_faketensor")


def runs_with_threads(function):
    """What ``function()`` returns with 1, 2, 3, 7 threads and one again."""
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7, 1):
            torch.set_num_threads(count)
            runs.append(function())
    finally:
        torch.set_num_threads(threads)
    return runs


def as_elsewhere(name, *arguments):
    """What the op does on a device that has no kernel of its own: here, with tensors of the CPU."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)
    return getattr(torch.ops.fastnas, name).default.redispatch(keys, *arguments)


def as_on_cuda(name, *arguments):
    """What CUDA tensors would get from an op in Triton: here, with tensors of the CPU."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(torch.ops.fastnas, name).default.redispatch(keys, *arguments)
