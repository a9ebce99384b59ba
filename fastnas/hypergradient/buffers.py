"""Buffers of modules that nobody named: those of every module that is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


class CalledBuffers:
    """Finds the modules that a loss calls, by a hook on all modules, and gives them their buffers back.

    A loss is a closure: parameters are known, the modules that hold BatchNorm's statistics beside them are not.

    Args:
        modules: those that are known; kept in any case.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._known = modules
        self._seen: dict[int, tuple[nn.Module, list[tuple[str, Tensor, Tensor]]]] = {}
        self._handle: RemovableHandle | None = None

    def listen(self) -> None:
        """Registers the hook; once, since a compiled module is compiled again for every new one."""
        self._handle = register_module_forward_pre_hook(self._called)

    def stop(self) -> None:
        """Removes it."""
        if self._handle is not None:
            self._handle.remove()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The buffers of every module that is called within it come back, bit for bit, as they were before."""
        for module in self._known:
            self._keep(module.modules())
        try:
            yield
        finally:
            with torch.no_grad():
                for module, buffers in self._seen.values():
                    _give_back(module, buffers)
            self._seen.clear()

    def _called(self, module: nn.Module, arguments: object) -> None:
        if torch.compiler.is_compiling():
            return  # the compiled module was seen when it was called
        self._keep(module.modules() if _is_compiled(module) else [module])

    def _keep(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            if id(module) not in self._seen:
                buffers = module.named_buffers(recurse=False)
                self._seen[id(module)] = (
                    module,
                    [(name, buffer, buffer.detach().clone()) for name, buffer in buffers],
                )


def _is_compiled(module: nn.Module) -> bool:
    """Whether its parts run without hooks: scripted, or made by ``torch.compile`` (whose class is slow to import)."""
    return isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules


def _give_back(module: nn.Module, buffers: list[tuple[str, Tensor, Tensor]]) -> None:
    for name, buffer, saved in buffers:
        buffer.data.copy_(saved)  # past the count of versions: a kept graph may hold the buffer
        if not isinstance(module, torch.jit.ScriptModule):
            module._buffers[name] = buffer  # also where the module put another tensor in its place
