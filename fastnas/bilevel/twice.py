"""Whether a loss can be differentiated twice: autograd does not always say that it cannot, and returns zeros."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import function

from fastnas.errors import FastnasError


def check_twice_differentiable(where: str, name: str, loss: Tensor) -> None:
    """Raise if a function of the loss's graph gives its gradient without a graph (``once_differentiable``).

    Autograd raises for such a function only if the gradient that reaches it has a graph, and only on the way to it:
    ``f(w).sum()`` has a second derivative of zero then. Kernels with a backward pass of their own, those of
    ``fastnas.ops`` for images among them, are such functions.

    Args:
        where, name: the function and the loss, for the error.
        loss: with its graph.

    Raises:
        FastnasError: there is one.

    Example:
        >>> import torch
        >>> w = torch.ones(3, requires_grad=True)
        >>> check_twice_differentiable("here", "train_loss", w.square().sum())  # fine
    """
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if _is_once_differentiable(backward):
            kind = node.name().removesuffix("Backward")
            raise not_twice(where, name, f"{kind} gives its gradient without a graph")
        nodes.extend(following for following, _ in node.next_functions)


def not_twice(where: str, name: str, why: str) -> FastnasError:
    """What to raise for a loss that cannot be differentiated twice."""
    return FastnasError(
        f"{where}: {name} cannot be differentiated twice ({why}); take differences, products=Products()"
    )


def _is_once_differentiable(backward: object) -> bool:
    # The decorator leaves no other mark than the code of the wrapper that it puts around ``backward``.
    code = getattr(backward, "__code__", None)
    return code is not None and code.co_name == "wrapper" and code.co_filename == function.__file__
