"""Programs that compute the loss of a last layer from its features: their errors and their temporary memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlcls import kernels
from rlcls.kernels.histogram.dispatch import KNOWN

# Compiling or running raises one of these if an implementation does not support the inputs or memory runs out.
REFUSALS = (ValueError, ImportError, NotImplementedError, jax.errors.JaxRuntimeError)


def prepare(
    batch: int, width: int, bins: int, dtype: str, sigma_ratio: float
) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """Errors, temporary bytes and refusals of every implementation for one size, and the programs to time."""
    projection = kernels.Gaussian(-10.7, 9.3, bins, sigma_ratio * 20 / bins)
    random = np.random.default_rng()
    features = random.standard_normal((batch, width), np.float32)
    kernel = random.standard_normal((width, bins), np.float32)
    kernel *= np.float32(3 / np.sqrt(width))  # the logits have the same scale as in kernels.py
    layer = jnp.asarray(features, dtype), jnp.asarray(kernel, dtype)
    targets = jnp.asarray(random.uniform(-10.7, 9.3, batch), jnp.float32)
    rows = max(1, min(batch, (1 << 22) // bins))
    few = (layer[0][:rows], layer[1]), targets[:rows]
    truth = _truth(projection, *few)
    errors, temporaries, refused, programs = {}, {}, {}, {}
    for name, loss in _losses(projection).items():
        gradient = jax.value_and_grad(lambda layer, t, loss=loss: loss(layer, t).mean())
        try:
            compiled = {
                kind: jax.jit(function).lower(layer, targets).compile()
                for kind, function in (("forward", loss), ("gradient", gradient))
            }
            jax.block_until_ready(compiled["gradient"](layer, targets))
            errors[name] = _errors(loss, few, truth)
        except REFUSALS as error:
            refused[name] = str(error).splitlines()[0]
            continue
        for kind, program in compiled.items():
            programs[f"{kind} {name}"] = functools.partial(program, layer, targets)
            temporaries[f"{kind} {name}"] = program.memory_analysis().temp_size_in_bytes
    return {"errors": errors, "temporary_bytes": temporaries, "refused": refused}, programs


def _losses(projection: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Maps each name to a function of (features, kernel) and targets."""

    def materialised(layer: Any, targets: Any) -> Any:
        return kernels.histogram_cross_entropy(layer[0] @ layer[1], targets, projection)

    def fused(layer: Any, targets: Any, name: str) -> Any:
        return kernels.linear_histogram_cross_entropy(*layer, None, targets, projection, implementation=name)

    return {"materialised": materialised} | {
        name: functools.partial(fused, name=name) for name in KNOWN["linear_histogram"][1:]
    }


def _errors(loss: Any, few: Any, truth: Any) -> dict[str, float]:
    """The largest error of a loss, and of a gradient's element as a share of the largest element."""
    (layer, targets), (losses, *gradients) = few, truth
    # Full precision, because the rounding of faster products is the same in all programs.
    with jax.default_matmul_precision("highest"):
        values = jax.jit(loss)(layer, targets)
        found = jax.jit(jax.grad(lambda layer: loss(layer, targets).sum()))(layer)
    pairs = zip(found, gradients, strict=True)
    return {
        "loss": float(abs(np.asarray(values, np.float64) - losses).max()),
        "gradient": max(
            float(abs(np.asarray(x, np.float64) - right).max() / abs(right).max()) for x, right in pairs
        ),
    }


def _truth(projection: Any, layer: Any, targets: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, and the gradients of their sum, in float64 by NumPy."""
    features, kernel = (np.asarray(x.astype(jnp.float32), np.float64) for x in layer)
    losses, d_logits = cross_entropy(features @ kernel, projection.encode(np.asarray(targets, np.float64)))
    return losses, d_logits @ kernel.T, features.T @ d_logits


def cross_entropy(logits: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The losses, and the gradient of each with respect to its logits."""
    top = logits.max(1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    return -(probs * log_probs).sum(1), np.exp(log_probs) - probs
