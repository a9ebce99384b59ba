"""How an estimator gets its second-order products: differences of gradients, or exact ones, behind one name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.difference import Gradient, difference
from fastnas.bilevel.problem import BilevelProblem, TwiceDifferentiable
from fastnas.errors import FastnasError

WAYS = ("difference", "exact")
SCHEMES = ("central", "forward")


@dataclass(frozen=True)
class Products:
    """Which second-order products an estimator takes: of H = d2L1/dw2, and the mixed d2L1/dalpha dw.

        central   [g(w + eps u) - g(w - eps u)] / (2 eps)     two gradients a product, error O(radius^2)
        forward   [g(w + eps u) - g(w)] / eps                 one, and one more for all of them; error O(radius)
        exact     by differentiating twice, eps = 0           about two gradients' time by the problem itself

    with eps = radius/|u|. Where a network has kinks (ReLU, maxima), a difference counts the switches that its step
    crosses and an exact product knows none of them: two estimators, and on one minibatch the difference is mostly noise
    (docs/decisions.md, 1 and 47). iDARTS' paper takes ``hessian="exact"`` with a central difference for the mixed one.

    Args:
        hessian: "difference" or "exact", of H u.
        mixed: the same of d2L1/dalpha dw . u.
        scheme: "central" or "forward", of the differences.
        radius: of the differences, in the units of w; > 0; 0.01 in the papers.

    Raises:
        FastnasError: an unknown name, or a radius that is no number > 0.

    Example:
        >>> Products(hessian="exact", radius=0.1)
        Products(hessian='exact', mixed='difference', scheme='central', radius=0.1)
    """

    hessian: str = "difference"
    mixed: str = "difference"
    scheme: str = "central"
    radius: float = 0.01

    def __post_init__(self) -> None:
        for name, known in (("hessian", WAYS), ("mixed", WAYS), ("scheme", SCHEMES)):
            if getattr(self, name) not in known:
                raise FastnasError(
                    f"Products: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        check.positive("Products", "radius", self.radius)

    def of(self, problem: BilevelProblem) -> Curvature:
        """The products at the present w and alpha of ``problem``.

        Raises:
            FastnasError: exact ones are wanted of a problem that has none.
        """
        return Curvature(problem, self)


CENTRAL = Products()


class Curvature:
    """The second derivatives of a problem at one point, as linear maps; w and alpha stay bit-identical.

    Made by ``Products.of``. Valid until w or alpha moves: the forward scheme keeps its base gradients.

    Args:
        problem: the oracles.
        products: which.
    """

    def __init__(self, problem: BilevelProblem, products: Products) -> None:
        self.problem, self.products = problem, products
        wanted = "exact" in (products.hessian, products.mixed)
        if wanted and not isinstance(problem, TwiceDifferentiable):
            raise FastnasError(
                f"{type(problem).__name__} has no exact second-order products (train_hessian_product, "
                "train_mixed_product, val_alpha_hessian_product); take differences in Products"
            )
        self._bases: dict[str, Tensor] = {}

    def hessian(self, u: Tensor) -> Tensor:
        """H u = d2L1/dw2 . u for u (P,), like w: (P,), the caller's own."""
        return self._product("train_grad_w", "train_hessian_product", self.products.hessian, "w", u)

    def mixed(self, u: Tensor) -> Tensor:
        """d2L1/dalpha dw . u for u (P,), like w: (H,), the caller's own."""
        return self._product("train_grad_alpha", "train_mixed_product", self.products.mixed, "w", u)

    def val_alpha_hessian(self, p: Tensor) -> Tensor:
        """d2L2/dalpha2 . p at fixed w, for p (H,), like alpha: (H,), the caller's own. Exact where H u is."""
        return self._product("val_grad_alpha", "val_alpha_hessian_product", self.products.hessian, "alpha", p)

    def base(self, oracle: str = "train_grad_w") -> Tensor | None:
        """The gradient at the point itself, which forward differences share; None: the scheme is central."""
        if self.products.scheme == "central":
            return None
        if oracle not in self._bases:
            self._bases[oracle] = getattr(self.problem, oracle)().contiguous()
        return self._bases[oracle]

    def _product(self, oracle: str, exact: str, way: str, name: str, u: Tensor) -> Tensor:
        at: Tensor = getattr(self.problem, name)
        check.flat_vector(exact, name, at)
        check.like(exact, "u", u, name, at)
        if way == "exact":
            product: Callable[[Tensor], Tensor] = getattr(self.problem, exact)
            return product(u)
        gradient: Gradient = getattr(self.problem, oracle)
        return difference(exact, at, gradient, u, self.products.radius, self.base(oracle))
