"""Histograms, cross-entropies and their gradients in float64, with NumPy alone."""

import numpy as np
from scipy.special import erfc, logsumexp

from rlcls import kernels

SPECIAL = (
    -10.7,
    9.3,
    1e30,
    -1e30,
    np.inf,
    np.nan,
)  # targets: the ends of `projections`, far outside, and NaN


def projections(num_bins):
    """Projections on [-10.7, 9.3], whose edges are not dyadic. With many bins, the last one has a wide band."""
    width = 20 / num_bins
    found = [
        kernels.Gaussian(-10.7, 9.3, num_bins, 0.75 * width),
        kernels.TwoHot(-10.7, 9.3, num_bins),
    ]
    if num_bins == 51:
        found.append(kernels.OneHot(-10.7, 9.3, num_bins))
    wide = {1000: 2.0, 8192: 50.0, 131_072: 1000.0}
    if num_bins in wide:
        found.append(kernels.Gaussian(-10.7, 9.3, num_bins, wide[num_bins] * width))
    return found


def histogram(projection, targets):
    """The histogram of each target [B, K]; the row of a NaN is NaN."""
    num_bins, targets = projection.num_bins, np.asarray(targets, np.float64)[:, None]
    columns = np.arange(num_bins)
    if isinstance(projection, kernels.TwoHot):
        low, high = projection.first_center, projection.last_center
        place = (np.clip(targets, low, high) - low) / (high - low) * (num_bins - 1)
        return np.maximum(1 - abs(columns - place), 0)
    low, high = projection.low_edge, projection.high_edge
    edges = low + (high - low) * np.arange(num_bins + 1) / num_bins
    if isinstance(projection, kernels.OneHot):
        place = np.clip(
            np.floor((np.clip(targets, low, high) - low) / (high - low) * num_bins), 0, num_bins - 1
        )
        return np.where(np.isnan(place), np.nan, columns == place)
    u = (edges - np.clip(targets, low, high)) / projection.sigma / np.sqrt(2)
    below, above = u[:, :-1], u[:, 1:]
    flip = (
        below + above < 0
    )  # each difference is taken in the tail where erfc is small, which keeps its digits
    mass = erfc(np.where(flip, -above, below)) - erfc(np.where(flip, -below, above))
    return mass / mass.sum(1, keepdims=True)


def cross_entropy(logits, probs):
    """Loss [B], log-sum-exp [B], the gradient of each row's loss [B, K], and the softmax [B, K]."""
    logits = np.asarray(logits, np.float64)
    lse = logsumexp(logits, axis=1)
    log_probs = logits - lse[:, None]
    with np.errstate(invalid="ignore"):
        loss = -np.where(probs == 0, 0, probs * log_probs).sum(1)
    softmax = np.exp(log_probs)
    return loss, lse, softmax - probs, softmax
