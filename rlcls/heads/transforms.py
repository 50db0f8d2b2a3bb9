"""Monotone maps that squash large values, and their inverses. NumPy in, NumPy out."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from rlcls.kernels.arrays import at_least_float32, namespace

Name = Literal["identity", "symlog", "signed_hyperbolic", "arcsinh"]

_EPS = 1e-3


class Transform(NamedTuple):
    """A map and its inverse, element-wise; their results have at least float32."""

    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]


def symlog(x: Any) -> Any:
    """sign(x) * log(1 + |x|).

    Source: Hafner et al. 2023, equation 9.
    """
    return _odd(x, lambda xp, a: xp.log1p(a))


def symexp(x: Any) -> Any:
    """sign(x) * (exp(|x|) - 1), the inverse of `symlog`."""
    return _odd(x, lambda xp, a: xp.expm1(a))


def signed_hyperbolic(x: Any) -> Any:
    """sign(x) * (sqrt(|x| + 1) - 1) + 1e-3 * x.

    Source: Pohlen et al. 2018, proposition A.2.
    """

    def forward(xp: Any, a: Any) -> Any:
        # sqrt(a + 1) - 1 in two forms: up to 1 one that loses no digits near 0, above 1 one that is inf at inf.
        small = xp.where(a > 1, a.dtype.type(1), a)
        root = xp.where(a > 1, xp.sqrt(a + 1) - 1, small / (xp.sqrt(small + 1) + 1))
        return root + _EPS * a

    return _odd(x, forward)


def signed_parabolic(x: Any) -> Any:
    """The inverse of `signed_hyperbolic`, in a form that loses no digits near 0."""

    def inverse(xp: Any, a: Any) -> Any:
        linear = 1 + 2 * _EPS
        root = 2 * a / (linear + xp.sqrt(linear**2 + 4 * _EPS * a))  # = sqrt(|x| + 1) - 1
        return root * (root + 2)

    return _odd(x, inverse)


def arcsinh(x: Any) -> Any:
    """The inverse hyperbolic sine: linear near 0, logarithmic far from it."""
    return _odd(x, lambda xp, a: xp.arcsinh(a))


def sinh(x: Any) -> Any:
    """The inverse of `arcsinh`."""
    return _odd(x, lambda xp, a: xp.sinh(a))


def _identity(x: Any) -> Any:
    return x


TRANSFORMS: dict[str, Transform] = {
    "identity": Transform(_identity, _identity),
    "symlog": Transform(symlog, symexp),
    "signed_hyperbolic": Transform(signed_hyperbolic, signed_parabolic),
    "arcsinh": Transform(arcsinh, sinh),
}


def _odd(x: Any, positive_half: Callable[[Any, Any], Any]) -> Any:
    """The odd function that equals `positive_half` for x >= 0; f(-x) = -f(x) to the last bit."""
    xp = namespace(x)
    x = at_least_float32(x, xp)
    # xp.sign and xp.abs have a derivative of 0 at 0, so a network whose first outputs are 0 would not learn.
    sign = xp.where(x < 0, x.dtype.type(-1), x.dtype.type(1))
    return sign * positive_half(xp, sign * x)
