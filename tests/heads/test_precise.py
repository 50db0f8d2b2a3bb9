"""HL-Gauss against arithmetic with 200 digits, for sigmas and targets where a float64 reference may be inaccurate."""

import decimal
import itertools
from decimal import Decimal

import jax
import numpy as np
import pytest

from rlcls import heads


def erf(x: Decimal) -> Decimal:
    """The Taylor series of erf, whose cancellation 200 digits can absorb. Beyond 16, erf is 1 to 110 digits."""
    if abs(x) > 16:
        return Decimal(1).copy_sign(x)
    term, total, n = x, x, 0
    while abs(term) > Decimal(10) ** -60:
        n += 1
        term *= -x * x / n
        total += term / (2 * n + 1)
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
    return 2 * total / pi.sqrt()


def precisely(support: heads.Support, sigma: float, target: float) -> np.ndarray:
    """The masses of the bins between exact edges, renormalised."""
    with decimal.localcontext() as context:
        context.prec = 200
        low, high = Decimal(support.vmin), Decimal(support.vmax)
        inside = min(max(Decimal(float(target)), low), high)
        edges = [low + (high - low) * i / support.num_bins for i in range(support.num_bins + 1)]
        below = [erf((edge - inside) / (Decimal(sigma) * Decimal(2).sqrt())) for edge in edges]
        whole = below[-1] - below[0]
        return np.array([float((b - a) / whole) for a, b in itertools.pairwise(below)])


@pytest.mark.parametrize(
    ("num_bins", "ratio"), [(51, 1e-3), (51, 0.25), (51, 0.75), (51, 9.0), (51, 11.0), (51, 1e3), (7, 1e6)]
)
def test_histograms_are_right_to_the_precision_of_their_dtype(num_bins, ratio):
    support = heads.Support.uniform(-10.7, 9.3, num_bins)
    head = heads.HLGauss(support, sigma=ratio * support.width)
    targets = np.float32([-1.3, 4.567, -10.6, 9.25, 9.3, -1e30])
    truth = np.array([precisely(support, head.sigma, target) for target in targets])
    np.testing.assert_allclose(head.encode(targets.astype(np.float64)), truth, atol=5e-15)
    for encoded in (head.encode(targets), jax.jit(head.encode)(targets)):
        assert encoded.dtype == np.float32
        np.testing.assert_allclose(encoded, truth, atol=4e-7)
