"""Graphs of the CPU that keep a GPU's rules: ``fastnas.supernet.graphs`` with tensors of the CPU, and no GPU.

A capture writes down every operation below autograd, with the very tensors that it read and made; a replay does these
operations again, into the same memory, and runs nothing of the captured Python. So what a GPU would bake in is baked in
here: a number, an address, a branch that Python took. The rules:

- Recording does no work: what it touched outside of itself is put back.
- What a GPU refuses while it records raises: to read a number, to make a tensor out of Python's, to look after a
  generator.
- All graphs of a device share one pool: a replay may overwrite the memory of every graph, so it fills it with NaN
  first.
- Memory that a graph reads but does not own must still be somebody's when it is replayed.
- A replay draws random numbers from where the generator stands; recording draws none.
"""

from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

_REFUSED = {
    "aten::_local_scalar_dense",
    "aten::lift_fresh",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
}
_REASON = "operation not permitted when stream is capturing"


def _tensors(*values):
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, torch.Tensor)]


def _address(tensor):
    return tensor.untyped_storage().data_ptr()


def _refuse(*_):
    raise RuntimeError(_REASON)


class Recording(TorchDispatchMode):
    """One graph: the operations, and all tensors that they read or made."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.inputs, self.own = (
            {},
            {},
        )  # storages by address: (storage, as it was), and those made while recording
        self.own_tensors, self.aliases = [], []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = _tensors(args, kwargs)
        if operation._schema.name in _REFUSED or (
            operation._schema.name == "aten::index" and any(t.dtype == torch.bool for t in given)
        ):
            _refuse()
        for tensor in given:
            if _address(tensor) not in self.own and _address(tensor) not in self.inputs:
                storage = tensor.untyped_storage()
                self.inputs[_address(tensor)] = storage, storage.clone()
        result = operation(*args, **kwargs)
        made = _tensors(result)
        known = {_address(tensor) for tensor in given}
        fresh = [tensor.untyped_storage().nbytes() > 0 and _address(tensor) not in known for tensor in made]
        for tensor in (tensor for tensor, is_fresh in zip(made, fresh, strict=True) if is_fresh):
            self.own[_address(tensor)] = tensor.untyped_storage()
            self.own_tensors.append(tensor)
        # What makes views only has nothing to do again: the memory is the same.
        if any(fresh) or operation._schema.is_mutable:
            args, kwargs = tree_map_only(torch.Tensor, self._held, (args, kwargs))
            made = [tensor if is_fresh else None for tensor, is_fresh in zip(made, fresh, strict=True)]
            self.operations.append((operation, args, kwargs, made))
        return result

    def _held(self, tensor):
        # Of what is not its own a graph keeps the address alone: an alias, so that the tensor can die.
        if _address(tensor) in self.own:
            return tensor
        self.aliases.append(tensor.detach())
        return self.aliases[-1]

    def finish(self):
        for storage, before in self.inputs.values():
            storage.copy_(before)
        self.inputs = {at: storage for at, (storage, _) in self.inputs.items()}
        self.aliases_of = Counter(map(_address, self.aliases))
        # What nobody else has at the end of the capture is a number that torch wrapped in a tensor: a GPU's kernel gets
        # it by value.
        self.borrowed = [at for at in self.inputs if at and self._is_owned_elsewhere(at)]

    def _is_owned_elsewhere(self, at):
        handle = self.inputs[at]  # one owner more
        return torch._C._storage_Use_Count(handle._cdata) > self.aliases_of[at] + 1

    def poison(self):
        for tensor in self.own_tensors:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
            elif tensor.dtype != torch.bool:
                tensor.fill_(-1)

    def play(self):
        if not all(self._is_owned_elsewhere(at) for at in self.borrowed):
            raise RuntimeError("the graph reads memory that has been freed")
        for operation, args, kwargs, made in self.operations:
            again = _tensors(operation(*args, **kwargs))
            # An empty tensor's memory is whatever was there: the NaN of poison().
            if "empty" in operation._schema.name:
                continue
            for old, new in zip(made, again, strict=True):
                if old is not None:
                    old.copy_(new)


class HostDevice:
    """The device of ``Graphs`` for tensors of the CPU; counts what it does."""

    def __init__(self):
        self.generators = [torch.default_generator]
        self.pool = []
        self.is_beside = False
        self.warm_ups = self.captures = self.replays = 0

    @contextmanager
    def beside(self):
        assert not self.is_beside
        self.is_beside, self.warm_ups = True, self.warm_ups + 1
        try:
            yield
        finally:
            self.is_beside = False

    def capture(self, function):
        assert not self.is_beside
        self.captures += 1
        recording, state = Recording(), torch.get_rng_state()
        refused = [patch.object(torch, name, _refuse) for name in ("get_rng_state", "set_rng_state")]
        try:
            with refused[0], refused[1], recording:
                outputs = function()
        finally:
            torch.set_rng_state(state)
            recording.finish()
        assert not any(output.requires_grad for output in outputs)
        self.pool.append(recording)
        return lambda: self._replay(recording), outputs

    @torch.no_grad()
    def _replay(self, recording):
        assert not self.is_beside
        self.replays += 1
        for other in self.pool:
            other.poison()
        recording.play()
