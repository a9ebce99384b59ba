"""The two sides of a comparison: plain PyTorch and fastnas with the same weights, alphas and batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.vanilla import Batch, DartsSupernet, ModelWithAlphas, Search, SearchSettings, concat
from bench.vanilla_nasbench201 import NasBench201Supernet
from fastnas.bilevel import METHODS as ESTIMATORS
from fastnas.bilevel import InnerSettings, Products
from fastnas.errors import FastnasError
from fastnas.search.step import SearchStep
from fastnas.spaces import make_space
from fastnas.supernet import (
    BACKENDS,
    Supernet,
    build_supernet,
    cuda_graphs,
    eagerly,
    gradient_parts,
    gradients,
    joined,
    narrow,
)

FORWARD_BACKWARD = "forward-backward"
METHODS = (FORWARD_BACKWARD, "first-order", "darts", "amended", "idarts")
LAYERS = {"darts": 8, "nasbench201": 5}  # the papers' search networks
CLASSES = 10
WEIGHT_IMAGES = 25_000  # the half of CIFAR-10's training images that a search trains weights on


@dataclass(frozen=True)
class Contest:
    """What both sides run.

    Args:
        space: "darts" or "nasbench201".
        channels: C.
        layers: cells of the DARTS supernet, or cells per stage of NAS-Bench-201's; None for the papers'.
        batch_size: images of one batch.
        image_size: side of the square images in pixels.
        device: "cpu", "cuda", "cuda:1".
        method: "forward-backward" (logits, weight and alpha gradients of one batch) or a whole search step of
            "first-order", "darts", "amended" or "idarts".
        inner_steps: T, weight steps of a search step; the estimators other than idarts take one.
        neumann_terms: K of idarts.
        seed: of weights, alphas and batches.
    """

    space: str = "darts"
    channels: int = 16
    layers: int | None = None
    batch_size: int = 16
    image_size: int = 32
    device: str = "cpu"
    method: str = FORWARD_BACKWARD
    inner_steps: int = 4
    neumann_terms: int = 2
    seed: int = 0

    @property
    def depth(self) -> int:
        """``layers``, or the papers' number."""
        return LAYERS[self.space] if self.layers is None else self.layers

    @property
    def weight_steps(self) -> int:
        """Weight steps in one search step."""
        return self.inner_steps if self.method == "idarts" else 1

    @property
    def steps_per_epoch(self) -> int | None:
        """Search steps that use each of CIFAR-10's 25,000 weight images once; None for one pass."""
        if self.method == FORWARD_BACKWARD:
            return None
        return math.ceil(WEIGHT_IMAGES / (self.batch_size * self.weight_steps))

    def check(self) -> None:
        """Raise FastnasError for a contest that cannot be held."""
        for name, value, known in (("space", self.space, LAYERS), ("method", self.method, METHODS)):
            if value not in known:
                raise FastnasError(f"unknown {name} {value!r}; known are {', '.join(known)}")
        least = {"channels": 2, "batch_size": 2, "image_size": 8, "inner_steps": 1, "neumann_terms": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise FastnasError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.depth < 1:
            raise FastnasError(f"layers must be at least 1, got {self.depth}")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise FastnasError(f"unknown device {self.device!r}; use cpu, cuda or cuda:N") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise FastnasError("device cuda: torch sees no GPU here; use --device cpu")


def check_backend(name: str) -> None:
    """Raise FastnasError for a backend that fastnas does not have."""
    if name not in BACKENDS:
        raise FastnasError(f"unknown backend {name!r}; known are {', '.join(BACKENDS)}")


def full_float32() -> None:
    """Both sides compute in float32 proper: TF32 would round a finite difference's perturbation away."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


# ---------------------------------------------------------------------------- the two networks


def vanilla_model(contest: Contest) -> ModelWithAlphas:
    """The network in plain PyTorch, its weights from the contest's seed."""
    torch.manual_seed(contest.seed)
    if contest.space == "darts":
        model: ModelWithAlphas = DartsSupernet(contest.channels, contest.depth, CLASSES)
    else:
        model = NasBench201Supernet(contest.channels, contest.depth, CLASSES)
    return model.to(contest.device)


def fastnas_model(
    contest: Contest, backend: str, model: ModelWithAlphas, recompute: bool = False
) -> Supernet:
    """The network in fastnas, in ``model``'s dtype and with its weights and alphas."""
    space = make_space(
        contest.space, channels=contest.channels, layers=contest.depth, classes=CLASSES, image_channels=3
    )
    dtype = model.alphas[0].dtype
    net = build_supernet(space, backend=backend, dtype=dtype, device=contest.device, recompute=recompute)
    sides = (
        ([*net.parameters()], [*model.parameters()]),
        ([*net.alphas.tensors.values()], model.alphas),
    )
    for ours, theirs in sides:
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.shape == other.shape, (mine.shape, other.shape)  # copy_ would broadcast
            mine.data.copy_(other.data)
    return net


def batches(contest: Contest, count: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Batches of noise, with labels, on the device: the arithmetic is the same for every image."""
    generator = torch.Generator().manual_seed(contest.seed)
    size = (contest.batch_size, 3, contest.image_size, contest.image_size)
    return [
        (
            torch.randn(size, generator=generator, dtype=dtype).to(contest.device),
            torch.randint(CLASSES, size[:1], generator=generator).to(contest.device),
        )
        for _ in range(count)
    ]


# ---------------------------------------------------------------------------- what is timed


def vanilla_function(contest: Contest, model: ModelWithAlphas) -> Callable[[], object]:
    """One forward + backward, or one whole search step, of plain PyTorch."""
    search = Search(model, SearchSettings(neumann_terms=contest.neumann_terms))
    val, *train = batches(contest, 1 + contest.weight_steps, model.alphas[0].dtype)
    if contest.method == FORWARD_BACKWARD:
        return lambda: search.gradients(train[0], [*search.weights, *model.alphas])
    step = getattr(search, f"{contest.method.replace('-', '_')}_step")
    return lambda: step(train, val)


def fastnas_function(
    contest: Contest, net: Supernet, *, graphs: bool = True, precision: torch.dtype | None = None
) -> Callable[[], object]:
    """One forward + backward, or one whole search step, of fastnas, with the same constants.

    Args:
        contest: says what, and on which batches.
        net: the network.
        graphs: replay CUDA graphs where the network is on a GPU.
        precision: of activations, in a lone pass or a step's weight steps; None: float32.
    """
    made = cuda_graphs(net.weights.flat.device) if graphs else None
    s = SearchSettings(neumann_terms=contest.neumann_terms)
    val, *train = batches(contest, 1 + contest.weight_steps, net.weights.flat.dtype)
    if contest.method == FORWARD_BACKWARD:

        def body(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            with narrow(images.device, precision):
                logits = net(images)
            return gradient_parts(F.cross_entropy(logits.float(), labels), net.weights, net.alphas)

        def one_pass() -> object:
            parts = eagerly(body, train[0]) if made is None else made.run("a pass", body, train[0])
            return joined(parts, net.weights, net.alphas)

        return one_pass
    inner = InnerSettings(
        learning_rate=s.w_lr,
        momentum=s.w_momentum,
        weight_decay=s.w_decay,
        eta=s.amended_eta,
        gamma=s.neumann_gamma,
        neumann_terms=s.neumann_terms,
        products=Products(radius=s.radius),
    )
    step = SearchStep(
        net,
        ESTIMATORS[contest.method],
        inner,
        grad_clip=s.w_clip,
        arch_learning_rate=s.a_lr,
        arch_weight_decay=s.a_decay,
        graphs=made,
        precision=precision,
    )

    def call() -> object:
        # On a GPU the first call, whose memory is measured, is also the warm-up and the capture.
        while made is not None and made.failure is None and not len(made):
            step(train, val, s.w_lr)
        return step(train, val, s.w_lr)

    return call


# ---------------------------------------------------------------------------- do both compute the same?


@dataclass(frozen=True)
class Agreement:
    """Errors of both sides in float32, relative to plain PyTorch in float64, in the 2-norm.

    Rounding flips a ReLU or a maximum now and then, and one flip moves a gradient by 1e-6 to 1e-3 (DARTS
    supernet): a single error is a throw of dice. So both sides compute the batch several times, its pixels
    moved by one unit in the last place, and fastnas' median stands against the worst of plain PyTorch.
    """

    quantity: str
    vanilla: tuple[float, ...]
    fastnas: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """At most twice vanilla's error and four units in the last place."""
        return median(self.fastnas) <= 2 * max(self.vanilla) + 4 * torch.finfo(torch.float32).eps


VERIFIED_IMAGES = 8  # plain PyTorch keeps 250 MB per image in float64 (DARTS supernet, C = 16, 8 cells)
DRAWS = 5
QUANTITIES = ("logits", "weight gradients", "alpha gradients")  # of a pass


def agreements(contest: Contest, model: ModelWithAlphas, net: Supernet) -> list[Agreement]:
    """Compare logits, weight gradients and alpha gradients of one batch with plain PyTorch in float64.

    Args:
        contest: says which batch; at most its first 8 images are used.
        model: plain PyTorch in float32.
        net: fastnas with the same weights.
    """
    images, labels = (part[:VERIFIED_IMAGES] for part in batches(contest, 1)[0])
    model = copy.deepcopy(model)  # its running statistics will move
    exact = plain_results(copy.deepcopy(model).double(), images.double(), labels)
    errors: dict[str, list[tuple[float, ...]]] = {"vanilla": [], "fastnas": []}
    generator = torch.Generator().manual_seed(contest.seed)
    for _ in range(DRAWS):
        up = (torch.rand(images.shape, generator=generator) < 0.5).to(images.device)
        moved = torch.where(up, images.nextafter(images + 1), images.nextafter(images - 1))
        both = {
            "vanilla": plain_results(model, moved, labels),
            "fastnas": fastnas_results(net, moved, labels),
        }
        for side, results in both.items():
            errors[side].append(tuple(relative_error(r, e) for r, e in zip(results, exact, strict=True)))
    by_quantity = {side: list(zip(*rows, strict=True)) for side, rows in errors.items()}
    return [
        Agreement(name, by_quantity["vanilla"][i], by_quantity["fastnas"][i])
        for i, name in enumerate(QUANTITIES)
    ]


def plain_results(
    model: ModelWithAlphas, images: Tensor, labels: Tensor, precision: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, weight gradients and alpha gradients of plain PyTorch, the gradients flat."""
    with narrow(images.device, precision):
        logits = model(images)
    weights = [*model.parameters()]
    grads = torch.autograd.grad(
        F.cross_entropy(logits.to(model.alphas[0].dtype), labels),
        [*weights, *model.alphas],
        allow_unused=True,
        materialize_grads=True,
    )
    return logits.detach(), concat(grads[: len(weights)]), concat(grads[len(weights) :])


def fastnas_results(
    net: Supernet, images: Tensor, labels: Tensor, precision: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of fastnas."""
    with net.frozen_statistics():
        with narrow(images.device, precision):
            logits = net(images)
        loss = F.cross_entropy(logits.to(net.weights.flat.dtype), labels)
        weights, alphas = gradients(loss, net.weights, net.alphas)
    return logits.detach(), weights, alphas


def relative_error(got: Tensor, exact: Tensor) -> float:
    """|got - exact| / |exact|, in float64."""
    return ((got.double() - exact).norm() / exact.norm()).item()


def require_agreement(found: Sequence[Agreement]) -> None:
    """Raise FastnasError, naming the first quantity that disagrees: what is not the same is not compared."""
    for a in found:
        if not a.holds:
            raise FastnasError(
                f"fastnas and plain PyTorch disagree, so nothing was timed: the {a.quantity} are off by"
                f" {median(a.fastnas):.2g} from float64, plain PyTorch's by at most {max(a.vanilla):.2g}"
            )
