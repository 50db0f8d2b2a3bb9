"""The value function of RECAP: the number of steps until success, in 201 bins on [-1, 0]. NumPy only."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float32, Int, Real

from rlcls._errors import check_choice

from .categorical import CategoricalHead, HLGauss, OneHot, TwoHot
from .support import Support

_NUM_BINS = 201


def recap(name: str = "one_hot") -> CategoricalHead:
    """A head with 201 bins on [-1, 0] for the returns of `recap_returns`.

    The centers are -1, -0.995, ..., 0. The default is one-hot, the published loss. A two-hot target keeps a return that
    lies between two centers. HL-Gauss needs a margin, so its 201 bins reach from -1.0115 to 0.0115 and are 0.0051 wide
    (`Support.widen`).

    Args:
      name: one_hot, two_hot or hlgauss.

    Raises:
      ValueError: the name is none of these three.

    >>> recap().support.centers[[0, 1, 200]]
    array([-1.   , -0.995,  0.   ])

    Source: Physical Intelligence 2025 (pi*0.6), equation 1 and section V-C; the paper does not say where in [-1, 0] the
    centers lie.
    """
    check_choice("recap: name", name, ("one_hot", "two_hot", "hlgauss"))
    support = Support.uniform(-1, 0, _NUM_BINS, on="centers")
    if name == "hlgauss":
        return HLGauss(support.widen())
    return TwoHot(support) if name == "two_hot" else OneHot(support)


def recap_returns(
    success: Bool[ArrayLike, "*#b"],
    length: Int[ArrayLike, "*#b"],
    step: Int[ArrayLike, "*#b"],
    *,
    failure_cost: Real[ArrayLike, "*#b"],
    max_length: Int[ArrayLike, "*#b"],
) -> Float32[np.ndarray, "*b"]:
    """The Monte-Carlo return at a step of an episode, divided by the length of the task's longest episode.

    return = max(-1, -((length - 1 - step) + (0 if success else failure_cost)) / max_length)

    Every reward is -1, except the last one, which is 0 after a success and -failure_cost after a failure. The return is
    the sum of the rewards from `step` on, normalised and limited to -1. With failure_cost >= max_length, every step of
    a failed episode has the return -1. If max_length + failure_cost is passed as `max_length`, no return is limited, so
    that the returns of failed episodes depend on the steps that are left; RLinf and Evo-RL do this. The arguments
    broadcast, and each may differ between tasks.

    Args:
      success: whether the episode succeeded.
      length: steps of the episode, at least 1.
      step: 0, ..., length - 1.
      failure_cost: the cost of a failure in steps, not negative. The paper calls it "a large constant".
      max_length: steps of the longest episode of the task, at least `length`.

    Raises:
      ValueError: an argument is out of range.
      TypeError: `success` is not boolean, or a number of steps is not an integer.

    >>> recap_returns(True, 5, np.arange(5), failure_cost=10, max_length=10)
    array([-0.4, -0.3, -0.2, -0.1,  0. ], dtype=float32)
    >>> recap_returns(False, 5, np.arange(5), failure_cost=7, max_length=10)
    array([-1. , -1. , -0.9, -0.8, -0.7], dtype=float32)

    Source: Physical Intelligence 2025 (pi*0.6), equation 5 and section V-C, which do not say how the return of a
    failure is kept above -1.
    """
    success = np.asarray(success)
    if success.dtype != np.bool_:
        raise TypeError(f"recap_returns: success must be boolean, not {success.dtype}")
    length, step = _steps("length", length), _steps("step", step)
    max_length, cost = _steps("max_length", max_length), np.asarray(failure_cost, np.float64)
    _check(length >= 1, "length must be at least 1")
    _check((step >= 0) & (step < length), "step must be at least 0 and below length")
    _check(max_length >= length, "max_length must be at least length")
    _check(np.isfinite(cost) & (cost >= 0), "failure_cost must be finite and not negative")
    # The negation of a float 0 would be -0.0.
    total = 0.0 - (length - 1 - step) - np.where(success, 0.0, cost)
    return np.maximum(-1.0, total / max_length).astype(np.float32)


def _steps(name: str, steps: Any) -> np.ndarray:
    steps = np.asarray(steps)
    if not np.issubdtype(steps.dtype, np.integer):
        raise TypeError(f"recap_returns: {name} must be an integer, not {steps.dtype}")
    return steps.astype(np.int64)


def _check(right: Any, message: str) -> None:
    if not np.all(right):
        raise ValueError(f"recap_returns: {message}")
