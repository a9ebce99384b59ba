"""A small network with everything that a problem has to leave as it was, and its losses as closures."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fastnas.bilevel import FunctionProblem


class Setting:
    """A smooth network in float64, outer parameters of two shapes, one batch each for training and validation.

    The outer parameters scale the features (``scale``) and weigh a penalty on the weights (``decay``).
    """

    def __init__(self, *layers: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), *layers, nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        self.scale = torch.randn(2, 3, generator=generator, dtype=dtype).div(3).requires_grad_()
        self.decay = torch.tensor(-2.0, dtype=dtype, requires_grad=True)
        self.outer = [self.scale, self.decay]
        self.x, self.x_val = torch.randn(2, 20, 6, generator=generator, dtype=dtype)
        self.y, self.y_val = torch.randint(0, 3, (2, 20), generator=generator)
        self.calls = 0

    def train_loss(self) -> Tensor:
        self.calls += 1
        penalty = sum(parameter.square().sum() for parameter in self.model.parameters())
        logits = self.model(self.x * self.scale.exp().flatten())
        return cross_entropy(logits, self.y) + self.decay.exp() * penalty

    def val_loss(self) -> Tensor:
        return cross_entropy(self.model(self.x_val * self.scale.exp().flatten()), self.y_val)

    def functions(self) -> FunctionProblem:
        """The same losses as functions of flat vectors, by torch.func: what the closures are held to."""
        parameters = dict(self.model.named_parameters())
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        outer = dict(zip(("scale", "decay"), self.outer, strict=True))

        def cut(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
            parts = flat.split([tensor.numel() for tensor in like.values()])
            return {name: part.view(like[name].shape) for part, name in zip(parts, like, strict=True)}

        def logits(w: Tensor, alpha: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            values = cut(alpha, outer)
            state = cut(w, parameters) | {name: buffer.clone() for name, buffer in buffers.items()}
            out = functional_call(self.model, state, (x * values["scale"].exp().flatten(),))
            return out, values["decay"].exp() * w.square().sum()

        def train_loss(w: Tensor, alpha: Tensor) -> Tensor:
            out, penalty = logits(w, alpha, self.x)
            return cross_entropy(out, self.y) + penalty

        def val_loss(w: Tensor, alpha: Tensor) -> Tensor:
            return cross_entropy(logits(w, alpha, self.x_val)[0], self.y_val)

        flat = [
            torch.cat([t.detach().flatten() for t in group]) for group in (parameters.values(), self.outer)
        ]
        return FunctionProblem(train_loss, val_loss, *flat)

    def everything(self) -> list[Tensor]:
        """All that a hypergradient must leave as it is, copied."""
        tensors = [*self.model.state_dict().values(), *self.outer, torch.get_rng_state()]
        return [tensor.detach().clone() for tensor in tensors]

    def addresses(self) -> list[int]:
        return [
            tensor.data_ptr() for tensor in [*self.model.parameters(), *self.model.buffers(), *self.outer]
        ]


def same_bits(before: list[Tensor], after: list[Tensor]) -> bool:
    """Equal to the bit, the sign of zeros included."""
    return all(
        torch.equal(
            one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
        )
        for one, other in zip(before, after, strict=True)
    )
