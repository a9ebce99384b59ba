"""The optimisers: each one flat vector, its constants, and the state that it keeps between steps."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnas.ops import adam_step_, sgd_step_, vector_norm


class Sgd:
    """SGD with momentum, weight decay and clipping (``fastnas.ops.sgd_step_``) on one flat vector.

    Args:
        w: (P,) the vector to move.
        momentum, weight_decay: factors, >= 0.
        clip: largest norm of a gradient.
        nesterov: Nesterov's momentum, as ``torch.optim.SGD`` has it; in plain PyTorch.

    Attributes:
        momentum_buffer: (P,), zeros at first; None without momentum.
        rate: the learning rate that ``set_rate`` was given, () float64 on the device, where a CUDA graph reads it anew.
    """

    def __init__(
        self, w: Tensor, *, momentum: float, weight_decay: float, clip: float, nesterov: bool = False
    ) -> None:
        self.nesterov = nesterov
        self.w, self.momentum, self.weight_decay, self.clip = w, momentum, weight_decay, clip
        self._rate = 0.0
        self.rate = torch.zeros((), dtype=torch.float64, device=w.device)
        self.momentum_buffer = torch.zeros_like(w) if momentum else None

    def step(self, grad: Tensor, learning_rate: float) -> Tensor:
        """One step; the norm of ``grad`` (P,) before clipping is returned, and left on the device."""
        self.set_rate(learning_rate)
        return self.move(grad)

    def set_rate(self, learning_rate: float) -> None:
        """The learning rate of the steps to come."""
        if learning_rate != self._rate:
            self._rate = learning_rate
            self.rate.fill_(learning_rate)

    def move(self, grad: Tensor) -> Tensor:
        """:meth:`step` at the learning rate that was set."""
        if self.nesterov:
            return self._nesterov_step(grad)
        return sgd_step_(
            self.w,
            grad,
            self.momentum_buffer,
            self.rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )

    def _nesterov_step(self, grad: Tensor) -> Tensor:
        assert self.momentum_buffer is not None
        norm = vector_norm(grad)
        moves = norm.isfinite()  # as sgd_step_ has it
        direction = grad * torch.clamp(self.clip / (norm + 1e-6), max=1.0)
        direction.add_(self.w, alpha=self.weight_decay)
        buffer = self.momentum_buffer * self.momentum + direction
        w = self.w - direction.add_(buffer, alpha=self.momentum).mul_(self.rate)
        self.momentum_buffer.copy_(torch.where(moves, buffer, self.momentum_buffer))
        self.w.copy_(torch.where(moves, w, self.w))
        return norm

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, by name, live."""
        return {} if self.momentum_buffer is None else {"momentum_buffer": self.momentum_buffer}


class Adam:
    """Adam with weight decay (``fastnas.ops.adam_step_``) on one flat vector.

    Args:
        alpha: (H,) the vector to move.
        learning_rate, betas, weight_decay: its constants.

    Attributes:
        exp_avg, exp_avg_sq: (H,), zeros at first.
        count: steps taken, scalar.
    """

    def __init__(
        self, alpha: Tensor, *, learning_rate: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self.alpha, self.learning_rate, self.betas = alpha, learning_rate, betas
        self.weight_decay = weight_decay
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(alpha), torch.zeros_like(alpha)
        self.count = torch.zeros((), dtype=torch.float32, device=alpha.device)

    def step(self, grad: Tensor) -> None:
        """One step along ``grad`` (H,)."""
        adam_step_(
            self.alpha,
            grad,
            self.exp_avg,
            self.exp_avg_sq,
            self.count,
            self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, by name, live."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "step": self.count}
