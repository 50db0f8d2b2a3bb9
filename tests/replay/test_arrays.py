"""The replay of compiled loops against the one on the host, which has an oracle of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls.replay import ArrayReplay, FrameReplay
from rlcls.replay.arrays import Sampled

OPTIONS = {"gamma": 0.9, "reward_clip": 1.0}


def both(num_streams, length, stack, n_step, prioritized, rows, seed):
    """The two replays after the same rows, in which no episode is a single observation."""
    random = np.random.default_rng(seed)
    options = OPTIONS | {"n_step": n_step, "prioritized": prioritized}
    host = FrameReplay(
        num_streams,
        num_streams * length,
        frame_shape=(2,),
        frame_dtype=np.uint8,
        stack=stack,
        min_size=1,
        **options,
    )
    arrays = ArrayReplay(num_streams, num_streams * length, (2,), "uint8", stack, **options)
    ring, starts, over = arrays.init(), np.ones(num_streams, bool), np.zeros(num_streams, bool)
    add = jax.jit(arrays.add)
    for row in range(rows):
        frames = random.integers(1, 256, (num_streams, 2), np.uint8)
        observations = np.repeat(frames[:, None], stack, axis=1) if stack else frames
        actions = random.integers(0, 4, num_streams).astype(np.int32)
        rewards = np.where(over, 0.0, random.normal(0, 1, num_streams)).astype(np.float32)
        ends = ~over & (random.random(num_streams) < 0.3)  # the next row is the final observation
        terminals = ends & (random.random(num_streams) < 0.6)
        columns = observations, actions, rewards, terminals, starts
        host.add(*columns)
        ring = add(ring, row, *map(jnp.asarray, columns))
        starts, over = over, ends
    return host, arrays, ring


# streams, rows of the ring, frames in an observation, n
SHAPES = [(1, 9, 0, 1), (3, 12, 3, 3), (3, 8, 0, 3), (1, 12, 3, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
@pytest.mark.parametrize("rows", (9, 30))
def test_every_sample_is_a_transition_of_the_host_replay(shape, rows):
    num_streams, length, stack, n_step = shape
    host, arrays, ring = both(num_streams, length, stack, n_step, False, rows, seed=rows)
    batch, sampled = arrays.sample(ring, rows, 256, jax.random.key(0))
    streams, slots = np.asarray(sampled.streams), np.asarray(sampled.slots)
    newest = rows - 1
    expected = host._transitions(streams, newest - (newest - slots) % length, np.ones(256, np.float32))
    assert (host.priorities.weights[streams * length + slots] > 0).all()
    for name, wanted in expected._asdict().items():
        if wanted is not None:
            np.testing.assert_allclose(getattr(batch, name), wanted, rtol=1e-6, atol=1e-6, err_msg=name)


def test_uniform_samples_are_equally_likely_and_reach_every_transition():
    host, arrays, ring = both(3, 12, 0, 1, False, 30, 0)
    _, sampled = arrays.sample(ring, 30, 40_000, jax.random.key(0))
    counts = np.bincount(np.asarray(sampled.streams) * 12 + np.asarray(sampled.slots), minlength=36)
    possible = host.priorities.weights > 0
    assert (counts[~possible] == 0).all()
    expected = 40_000 / possible.sum()
    # The share of final observations is about a fifth here, whose fourth power moves shares by 0.2 %.
    assert (abs(counts[possible] - expected) < 5 * expected**0.5 + 0.01 * expected).all()


@shapes
@pytest.mark.parametrize("rows", (9, 30))
def test_priorities_weigh_as_on_the_host(shape, rows):
    num_streams, length, stack, n_step = shape
    host, arrays, ring = both(num_streams, length, stack, n_step, True, rows, seed=rows)
    assert arrays.length == length
    _, sampled = arrays.sample(ring, rows, 8, jax.random.key(0))
    streams, slots = np.asarray(sampled.streams), np.asarray(sampled.slots)
    places = streams * length + slots
    divergences = np.linspace(0, 4, length * num_streams).astype(np.float32)[places]
    newest = rows - 1
    host.set_priorities((streams, newest - (newest - slots) % length), divergences)
    ring = ring._replace(weights=arrays.set_priorities(ring.weights, sampled, jnp.asarray(divergences)))
    values = np.asarray(ring.weights.values).reshape(length, num_streams).T.reshape(-1)
    np.testing.assert_allclose(values, host.priorities.weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ring.weights.sums, np.asarray(ring.weights.values).sum(-1), rtol=1e-6)
    assert float(ring.weights.largest) == pytest.approx(host.max_priority, rel=1e-5)


def test_samples_by_priority_are_in_proportion_to_it():
    _, arrays, ring = both(2, 32, 0, 1, True, 33, 1)
    random = np.random.default_rng(0)
    places = np.flatnonzero(np.asarray(ring.weights.values).reshape(-1) > 0)
    chosen = Sampled(jnp.asarray(places % 2), jnp.asarray(places // 2))
    divergences = jnp.asarray(random.uniform(0, 9, len(places)), jnp.float32)
    ring = ring._replace(weights=arrays.set_priorities(ring.weights, chosen, divergences))
    weights = np.asarray(ring.weights.values).reshape(-1)
    batch, sampled = arrays.sample(ring, 33, 20_000, jax.random.key(0))
    counts = np.bincount(np.asarray(sampled.slots) * 2 + np.asarray(sampled.streams), minlength=64)
    np.testing.assert_allclose(counts / 20_000, weights / weights.sum(), atol=3e-3)
    importance = weights[np.asarray(sampled.slots) * 2 + np.asarray(sampled.streams)] ** -0.5
    np.testing.assert_allclose(batch.weight, importance / importance.max(), rtol=1e-5)


def test_rows_are_written_in_place_for_all_seeds_at_once():
    arrays = ArrayReplay(8, 4096, (10, 10, 4), "bool")
    rings = jax.eval_shape(jax.vmap(lambda _: arrays.init()), jnp.zeros(3))
    row = [jax.ShapeDtypeStruct((3, 8, *shape), dtype) for shape, dtype in (((10, 10, 4), bool), ((), int))]
    row += [jax.ShapeDtypeStruct((3, 8), dtype) for dtype in (np.float32, bool, bool)]
    row[1] = jax.ShapeDtypeStruct((3, 8), np.int32)
    add = jax.jit(jax.vmap(arrays.add, in_axes=(0, None, 0, 0, 0, 0, 0)), donate_argnums=0)
    compiled = add.lower(rings, jax.ShapeDtypeStruct((), np.int32), *row).compile()
    ring_bytes = 3 * arrays.nbytes
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= ring_bytes
    assert memory.temp_size_in_bytes < ring_bytes / 100
    assert " scatter(" not in compiled.as_text()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_streams": 0}, "num_streams must be at least 1, not 0"),
        ({"n_step": 0}, "n_step must be at least 1, not 0"),
        ({"gamma": 1.5}, "gamma must be between 0 and 1, not 1.5"),
        ({"reward_clip": -1.0}, "reward_clip must be at least 0, not -1.0"),
        (
            {"capacity": 4},
            r"the replay's capacity \(4\) must hold at least 3 steps of each of 2 environments",
        ),
        ({"min_size": 100}, r"capacity \(20\) must be at least min_size \(100\)"),
    ],
)
def test_an_impossible_option_is_one_line(wrong, words):
    with pytest.raises(ValueError, match=words):
        ArrayReplay(**{"num_streams": 2, "capacity": 20, "frame_shape": (1,)} | wrong)


def test_noise_is_added_once_to_clipped_rewards():
    arrays = ArrayReplay(64, 640, (1,), reward_clip=1.0, reward_noise=0.5)
    ring, nothing = arrays.init(), jnp.zeros(64, bool)
    for row, raw in enumerate((-3.0, 0.5, 7.0)):
        columns = jnp.zeros((64, 1), jnp.uint8), jnp.zeros(64, jnp.int32), jnp.full(64, raw), nothing, nothing
        ring = arrays.add(ring, row, *columns, jax.random.key(row))
    noise = np.asarray(ring.rewards[:3]) - np.array([[-1.0], [0.5], [1.0]])
    assert noise.min() >= 0 and noise.max() <= 0.5 and abs(noise.mean() - 0.25) < 0.04
    assert len(np.unique(noise.round(6))) > 180
    slots = jnp.zeros(64, jnp.int32)
    reward, *_ = arrays._accumulate(ring, Sampled(jnp.arange(64), slots))
    np.testing.assert_array_equal(reward, ring.rewards[0])


@pytest.mark.untyped
def test_noise_needs_a_key_and_is_not_negative():
    with pytest.raises(ValueError, match="reward_noise must be at least 0, not -1"):
        ArrayReplay(1, 10, (1,), reward_noise=-1.0)
    arrays, one = ArrayReplay(1, 10, (1,), reward_noise=1.0), jnp.zeros(1, bool)
    with pytest.raises(ValueError, match="reward_noise needs a key"):
        arrays.add(arrays.init(), 0, jnp.zeros((1, 1)), one.astype(int), jnp.zeros(1), one, one)
