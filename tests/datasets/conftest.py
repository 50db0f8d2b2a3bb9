"""Recordings for the tests of datasets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls.datasets import BEGINS, CONTINUES, ArrayTransitions, Layout, Recording, Rows, Writer

LAYOUT = Layout(game="Pong", frame_shape=(2, 3), stack=4, num_actions=6)


def rows_of(layout, lengths, *, seed=0):
    """Episodes of these lengths, each with a final observation after its terminal."""
    random, count = np.random.default_rng(seed), sum(lengths)
    starts, terminals = np.full(count, CONTINUES, np.uint8), np.zeros(count, bool)
    firsts = np.cumsum([0, *lengths[:-1]])
    starts[firsts] = BEGINS
    terminals[firsts + np.array(lengths) - 2] = True
    frames = random.integers(1, 255, (count, *layout.frame_shape)).astype(layout.frame_dtype)
    actions = random.integers(0, layout.num_actions, count, np.int32)
    rewards = random.integers(-3, 4, count).astype(np.float32)
    return Rows(frames, actions, rewards, terminals, starts)


@pytest.fixture
def make_rows():
    return rows_of


@pytest.fixture
def record():
    """A function that writes a finished recording of rows."""

    def make(path, rows, layout=LAYOUT) -> Recording:
        with Writer(path, layout, {"made": "for a test"}) as writer:
            writer.append(rows)
            return writer.finish()

    return make


@pytest.fixture
def layout():
    return LAYOUT


@pytest.fixture
def compare_on_device():
    """Compares the transitions that start at some rows with those of `ArrayTransitions`."""

    def compare(data, rows):
        columns = jax.tree.map(jnp.asarray, data.arrays())
        ours, theirs = ArrayTransitions.of(data).at(columns, jnp.asarray(rows)), data.at(rows)
        for name, expected in theirs._asdict().items():
            one = np.asarray(getattr(ours, name))
            assert (one.dtype, one.shape) == (expected.dtype, expected.shape)
            if name in ("reward", "discount"):  # sums of float32 numbers, and of float64 numbers on the host
                np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(one, expected, name)

    return compare
