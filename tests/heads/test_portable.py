"""`portable_encode` gives the same bits in NumPy, in a data loader, as on a device."""

import os
import subprocess
import sys

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls import heads

HEADS = [
    *(heads.recap(name) for name in ("one_hot", "two_hot", "hlgauss")),
    heads.HLGauss(heads.Support.uniform(-10.7, 9.3, 51)),
    heads.HLGauss(heads.Support.uniform(-1, 0, 5), sigma_ratio=2),
    heads.HLGauss(heads.Support.uniform(0, 1, 7), sigma_ratio=1e-3),
    heads.TwoHot(heads.Support.uniform(0, 1e4, 2000, on="centers")),
    heads.C51(heads.Support.uniform(-3, 3, 2, on="centers")),
]
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.name}-{head.num_outputs}")

# Runs with the compiler's default flags, unlike this test process. XLA may then fuse products and sums.
PROGRAM = """
import jax
import numpy as np
from rlcls import heads

random = np.random.default_rng(0)
lengths = np.arange(1, 1500, 31)
returns = [-np.arange(length + 1) / length for length in lengths]
targets = np.concatenate([*returns, random.uniform(-1.1, 0.1, 20_000)]).astype(np.float32)
for name in ("one_hot", "two_hot", "hlgauss"):
    head = heads.recap(name)
    on_device = jax.jit(lambda x: heads.portable_encode(head, x))
    for part in np.array_split(targets, 2):
        expected = heads.portable_encode(head, part)
        assert (np.asarray(on_device(part)).view(np.int32) == expected.view(np.int32)).all(), name
print(len(targets))
"""


def test_returns_of_every_length_have_the_same_bits_with_default_compiler_flags(pytestconfig):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=pytestconfig.rootpath,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 50_000


@every_head
@given(targets=hnp.arrays(np.float32, 16, elements=st.floats(width=32)))
@settings(max_examples=50)
def test_any_float_has_the_same_bits(head, targets):
    expected = heads.portable_encode(head, targets)
    encode = jax.jit(heads.portable_encode, static_argnums=0)
    for encoded in (encode(head, targets), heads.portable_encode(head, jnp.asarray(targets))):
        assert isinstance(expected, np.ndarray) and isinstance(encoded, jax.Array)
        np.testing.assert_array_equal(np.asarray(encoded).view(np.int32), expected.view(np.int32))
    np.testing.assert_array_equal(np.isnan(expected), np.isnan(targets)[:, None].repeat(head.num_outputs, 1))


@every_head
def test_a_histogram_is_that_of_the_target_rounded_to_a_place(head):
    grid = head.projection.grid
    places = np.random.default_rng(0).integers(0, grid.count * 1024 - 1, 2000)
    exact = grid.low + grid.width * places / 1024
    encoded = heads.portable_encode(head, exact.astype(np.float32))
    rounding = 4 * np.finfo(np.float32).eps * max(abs(grid.low), abs(grid.high)) / grid.width
    if rounding < 1 / 2048:  # else float32 is coarser than a place
        # Rounding in float64 can put a target at an edge into the bin below.
        above = 1e-7 * grid.width if head.name == "one_hot" else 0.0
        np.testing.assert_allclose(encoded, head.encode(exact + above), atol=3e-7)
    np.testing.assert_allclose(encoded.sum(-1), 1, atol=3e-7)


@pytest.mark.parametrize("head", [HEADS[i] for i in (1, 2, 3, 4, 6, 7)], ids=lambda head: head.name)
@given(share=st.floats(0, 1))
@settings(max_examples=50)
def test_the_value_moves_by_half_a_place_at_most(head, share):
    grid = head.projection.grid
    target = np.array([grid.low + share * (grid.high - grid.low)])
    decoded = head.decode(heads.portable_encode(head, target))
    precision = 2e-7 * max(abs(grid.low), abs(grid.high))
    bound = (1 / 2048 + 5e-5) * grid.width + 8 * precision
    np.testing.assert_allclose(decoded, head.decode(head.encode(target)), atol=bound)


def test_the_highest_target_is_in_the_highest_bin():
    for head in HEADS[:3]:
        encoded = heads.portable_encode(head, np.float32([head.support.low_edge, head.support.high_edge, 9]))
        assert encoded.argmax(-1).tolist() == [0, 200, 200]
    np.testing.assert_array_equal(heads.portable_encode(HEADS[0], np.float32(0))[200], 1)


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (heads.MSE(), TypeError, "portable_encode: head must be an HLGauss, OneHot or TwoHot, not MSE()"),
        (
            heads.TwoHot(heads.Support.symexp(-5, 5, 11)),
            ValueError,
            "portable_encode: the support must have at most 16,384 bins of one width and no scalar_transform, not",
        ),
        (
            heads.HLGauss(heads.Support.uniform(-5, 5, 11, scalar_transform="symlog")),
            ValueError,
            "portable_encode: the support must have at most 16,384 bins of one width and no scalar_transform, not",
        ),
        (heads.HLGauss(heads.Support.uniform(-5, 5, 20000)), ValueError, "must have at most 16,384 bins"),
    ],
)
@pytest.mark.untyped
def test_other_heads_are_refused_in_one_line(head, error, message):
    with pytest.raises(error) as raised:
        heads.portable_encode(head, np.zeros(3))
    assert message in str(raised.value) and "\n" not in str(raised.value)
