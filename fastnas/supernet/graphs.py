"""CUDA graphs: what a function launches is recorded once and afterwards replayed as one launch.

A graph knows addresses, not names: it reads the memory that the function read and writes the memory that it wrote,
whatever Python holds by then. So batches are copied into buffers that stay, what the function returns lies where the
recording put it, and a number that Python handed to a kernel is part of the graph for good.

:class:`Graphs` is that logic; what it needs of a device is a :class:`GraphDevice`, of which :class:`CudaDevice` is the
one that users meet (``tests/graphs_on_host.py`` has one for the CPU, which keeps a GPU's rules and checks them).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = tuple[Tensor, ...]
"""What a network reads, then the targets."""
Outputs: TypeAlias = tuple[Tensor, ...]
Body: TypeAlias = Callable[..., Outputs]

# Runs before a function is captured: libraries make their handles and choose their algorithms in the first ones.
WARM_UP = 3


def eagerly(body: Body, batch: Batch, *, keep_random_state: bool = False) -> Outputs:
    """``body(*batch)``; with ``keep_random_state`` the generators are found again as they were."""
    if not keep_random_state:
        return body(*batch)
    first = batch[0]
    with torch.random.fork_rng([first.device.index] if first.is_cuda else []):
        return body(*batch)


class GraphDevice(Protocol):
    """What capturing needs of a device. One object stands for one stream of its own and one pool of memory.

    Attributes:
        generators: those that a captured function may draw from. A replay draws from where they stand, and
            moves them on.
    """

    generators: Sequence[torch.Generator]

    def beside(self) -> AbstractContextManager[None]:
        """Within it work goes to the own stream, behind what has been launched and before what will be."""
        ...

    def capture(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Records what ``function`` launches, without doing it.

        Returns:
            A call that does it all, on the current stream, and the tensors that it writes its results to.

        Raises:
            Exception: what ``function`` raised, or the device; the device is as before then.
        """
        ...


class CudaDevice:
    """Graphs of a GPU, by ``torch.cuda.CUDAGraph``.

    Args:
        device: a CUDA device; without an index the current one.
    """

    def __init__(self, device: torch.device | str) -> None:
        index = torch.device(device).index
        self.index: int = torch.cuda.current_device() if index is None else index
        torch.cuda.init()  # the default generators are made by it
        self.generators: Sequence[torch.Generator] = [torch.cuda.default_generators[self.index]]
        self.stream = torch.cuda.Stream(self.index)
        self.pool = torch.cuda.graph_pool_handle()
        self._failed: list[torch.cuda.CUDAGraph] = []  # the allocator may still ask one what it captures

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within it work goes to the own stream, behind what has been launched and before what will be."""
        current = torch.cuda.current_stream(self.index)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)

    def capture(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Records what ``function`` launches; see :class:`GraphDevice`."""
        cause: BaseException | None = None
        graph = torch.cuda.CUDAGraph()
        try:
            # stream() outside: if the end of a capture fails, torch.cuda.graph leaves its stream the current one.
            with torch.cuda.device(self.index), torch.cuda.stream(self.stream):
                for generator in self.generators:
                    graph.register_generator_state(generator)
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                    try:
                        outputs = function()
                    except BaseException as error:
                        cause = error  # the end of the capture fails, too, and says less
                        raise
        except BaseException as error:
            self._failed.append(graph)
            self._mend()
            raise cause or error from None
        return graph.replay, outputs

    def _mend(self) -> None:
        """Puts torch's state back after a capture whose end failed: torch stops halfway there."""
        for generator in self.generators:
            # It still waits for the capture's end, and would refuse to draw outside of one.
            generator.graphsafe_set_state(generator.clone_state())
        # The allocator still sends the capture's allocations to the pool, and the pool counts one user too many:
        # memory would not come back. It raises if the capture's end got as far as to do it itself.
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(self.index, self.pool)
            torch._C._cuda_releasePool(self.index, self.pool)


@dataclass
class _Function:
    """One function: the batches that it is captured for, how often it has run, and its graph once there is one."""

    signature: Hashable
    runs: int = 0
    replay: Callable[[], None] | None = None
    outputs: Outputs = ()


class Graphs:
    """Runs functions of a batch: some times as they are, then captured, then by replaying the graph.

    The runs before the capture are real ones, and recording does no work, so nothing is done twice. All graphs
    share one pool of memory: the activations of one lie where another's lay, so that many graphs take no more memory
    than one, and **what a function returns is to be read before the next function runs**.

    A batch of another size than the function's first runs as it is. If a capture fails, that is said in one sentence,
    all graphs are dropped, and everything runs as it is from then on.

    Args:
        device: where.
        warm_up: runs before a function is captured.
        say: what takes the sentence; a warning by default.

    Attributes:
        allowed: whether functions may be captured by now. Who knows all functions that will run sets it when each has
            run: what runs as it is takes memory beside the pool's.
        failure: the sentence, if a capture has failed.
    """

    def __init__(
        self, device: GraphDevice, *, warm_up: int = WARM_UP, say: Callable[[str], object] | None = None
    ) -> None:
        self.device, self.warm_up = device, warm_up
        self.allowed = True
        self.failure: str | None = None
        self._say = say or _warn
        self._functions: dict[Hashable, _Function] = {}
        self._buffers: dict[Hashable, Batch] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        # Graphs point into the memory of what they were captured for: the copy begins anew.
        other = memo[id(self)] = Graphs(self.device, warm_up=self.warm_up, say=self._say)
        return other

    def __len__(self) -> int:
        """Graphs captured."""
        return sum(function.replay is not None for function in self._functions.values())

    def run(
        self, name: str, body: Body, batch: Batch, *, of: Hashable = None, keep_random_state: bool = False
    ) -> Outputs:
        """``body(*batch)``, by its graph if there is one.

        Args:
            name: of the function, in the sentence.
            body: launches the same work on the same memory in every call, but for its batch; waits for nothing on
                the device and makes no tensor out of Python numbers; returns tensors without autograd's graph.
            batch: its tensors are copied into buffers of their size.
            of: name and ``of`` together say which function it is.
            keep_random_state: leave the generators as they were; each call then draws the same numbers.

        Returns:
            What ``body`` returned, or its graph wrote, to be read before the next run.
        """
        if self.failure is not None:
            return eagerly(body, batch, keep_random_state=keep_random_state)
        signature = _signature(batch)
        function = self._functions.setdefault((name, of), _Function(signature))
        if function.signature != signature:
            return eagerly(body, batch, keep_random_state=keep_random_state)
        placed = self._place(batch, signature)
        if function.replay is None:
            if function.runs < self.warm_up or not self.allowed:
                with self.device.beside():
                    outputs = eagerly(body, placed, keep_random_state=keep_random_state)
                function.runs += 1  # one that raised is none
                return outputs
            sentence = self._capture(name, function, lambda: body(*placed))
            if sentence is not None:
                self._give_up(sentence)
                return eagerly(body, batch, keep_random_state=keep_random_state)
        assert function.replay is not None
        with _kept(self.device.generators) if keep_random_state else nullcontext():
            function.replay()
        return function.outputs

    def _place(self, batch: Batch, signature: Hashable) -> Batch:
        """The buffers of the batch's size, holding it. All functions share them: each is filled anew for each run."""
        if signature not in self._buffers:
            self._buffers[signature] = tuple(torch.empty_like(tensor) for tensor in batch)
        buffers = self._buffers[signature]
        for buffer, tensor in zip(buffers, batch, strict=True):
            buffer.copy_(tensor)
        return buffers

    def _capture(self, name: str, function: _Function, call: Callable[[], Outputs]) -> str | None:
        """Gives ``function`` its graph, or returns the sentence that says why there is none."""
        on_the_host = torch.get_rng_state()
        try:
            replay, outputs = self.device.capture(call)
            if not torch.equal(on_the_host, torch.get_rng_state()):
                torch.set_rng_state(on_the_host)
                raise RuntimeError("it draws random numbers on the CPU, which a graph would repeat")
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return (
                f"{name} could not be captured in a CUDA graph, so this run goes on without graphs: {reason}"
            )
        function.replay, function.outputs = replay, outputs
        return None

    def _give_up(self, sentence: str) -> None:
        self.failure = sentence
        self._functions.clear()
        self._buffers.clear()
        self._say(sentence)


def cuda_graphs(device: torch.device | str, *, say: Callable[[str], object] | None = None) -> Graphs | None:
    """The graphs of a CUDA device; None for any other."""
    return Graphs(CudaDevice(device), say=say) if torch.device(device).type == "cuda" else None


def _signature(batch: Batch) -> Hashable:
    """What a graph takes for granted of a batch."""
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in batch)


@contextmanager
def _kept(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Puts the generators back. On the host only: a GPU's generator is a seed and an offset there."""
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)
