"""Many seeds learn exact values from one recording, have the bits of each alone, and share one copy of the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlcls import heads, networks
from rlcls._errors import UserError
from rlcls.agents import CQL
from rlcls.datasets import BEGINS, CONTINUES, Layout, Rows, Transitions, Writer
from rlcls.training import Compiled, Diverged, OfflineProgram
from rlcls.training.loop import Loop, Saved

GAMMA = 0.5
SUPPORT = {"vmin": -2.0, "vmax": 2.0, "num_bins": 51}
HEADS = {
    "mse": heads.make("mse"),
    "hlgauss": heads.make("hlgauss", **SUPPORT),
    "two_hot": heads.make("two_hot", **SUPPORT),
    "c51": heads.make("c51", **SUPPORT),
    "quantile": heads.make("quantile", num_quantiles=11),
}
# Both actions lead from the first state to the second. There both end the episode, and action 1 earns 1.
STATES = np.array([[-1.0], [1.0]], np.float32)
FIRST_VALUE = {"q_learning": GAMMA, "sarsa": GAMMA / 2, "monte_carlo": GAMMA / 2}


def write(folder, episodes):
    """Records episodes of two steps, without a final observation. They play the four pairs of actions in turn."""
    actions = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)[np.arange(episodes) % 4]
    rows = Rows(
        np.tile(STATES, (episodes, 1)),
        actions.reshape(-1),
        np.stack([np.zeros(episodes), actions[:, 1]], axis=1).reshape(-1).astype(np.float32),
        np.tile([False, True], episodes),
        np.tile(np.array([BEGINS, CONTINUES], np.uint8), episodes),
    )
    with Writer(
        folder, Layout(game="steps", frame_shape=(1,), frame_dtype="float32", num_actions=2), {}
    ) as writer:
        writer.append(rows)
        return writer.finish()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write(tmp_path_factory.mktemp("recording") / "a", 200)


def program(recording, seeds=(0, 1), head="mse", *, rate=1e-2, target="q_learning", vmap=None, **options):
    data = Transitions(recording, **{"gamma": GAMMA} | options)
    agent = CQL(
        data.spec,
        functools.partial(networks.MLP, hidden=(16,)),
        HEADS[head],
        alpha=0.0,
        target=target,
        learning_rate=rate,
        optimizer=functools.partial(optax.adam, eps=1e-5),
        target_period=20,
    )
    return OfflineProgram(agent, {seed: data.with_seed(seed) for seed in seeds}, batch_size=64, vmap=vmap)


def run(loop, until):
    lines = []
    while loop.counts["updates"] < until:
        lines += loop.advance()
    return lines


def parameters(loop, lane):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(loop.acting()[str(lane)])]


@pytest.mark.parametrize(
    ("head", "target"),
    [(head, "q_learning") for head in HEADS]
    + [(head, target) for head in ("mse", "hlgauss") for target in ("sarsa", "monte_carlo")],
)
def test_every_lane_learns_the_exact_values(recording, head, target):
    setting = program(recording, head=head, target=target)
    loop = Compiled([setting], [0, 1], log_every=1000)
    run(loop, 2000)
    first = FIRST_VALUE[target]
    for acting in loop.acting().values():
        values = setting.agent.q_values(acting, jnp.asarray(STATES))
        np.testing.assert_allclose(
            values, [[first, first], [0.0, 1.0]], atol=0.06 if target == "q_learning" else 0.1
        )


@pytest.mark.parametrize("options", [{}, {"reward_noise": 0.5, "held_out": 0.4, "n_step": 2}])
def test_a_seed_among_others_has_the_bits_of_that_seed_alone(recording, options):
    together = Compiled([program(recording, (5, 6, 7), **options)], [5, 6, 7], log_every=100)
    alone = Compiled([program(recording, (7,), **options)], [7], log_every=40)
    run(together, 200)
    run(alone, 200)
    for one, other in zip(parameters(together, 2), parameters(alone, 0), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((a != b).any() for a, b in zip(parameters(together, 1), parameters(alone, 0), strict=True))


def test_lanes_as_one_batched_computation_learn_the_same_up_to_rounding(recording):
    options = {"reward_noise": 0.5, "held_out": 0.4}
    batched = Compiled([program(recording, vmap=True, **options)], [0, 1], log_every=50)
    alone = Compiled([program(recording, vmap=False, **options)], [0, 1], log_every=50)
    for loop in (batched, alone):
        run(loop, 100)
    assert len(batched._groups) == 1 and len(alone._groups) == 2
    for one, other in zip(parameters(batched, 1), parameters(alone, 1), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_lanes_share_all_columns_but_those_that_depend_on_the_seed(recording):
    def names(**options):
        loop = Compiled([program(recording, **options)], [0, 1], log_every=50)
        first, second = loop._groups
        assert first._common is second._common and first._common["frames"].shape == (400, 1)
        return set(first._own)

    assert names() == set()
    assert names(reward_noise=0.5) == {"rewards", "returns"}
    assert names(held_out=0.4) == {"first_rows", "count"}


@pytest.mark.parametrize("vmap", (True, False))
def test_the_program_neither_contains_nor_copies_the_data(tmp_path, vmap):
    loop = Compiled([program(write(tmp_path / "a", 100_000), vmap=vmap)], [0, 1], log_every=50)
    group = loop._groups[0]
    ends = jnp.zeros((), jnp.int32)
    arguments = group.state, group._run_values, group._seeds, group._own, group._common, ends, ends
    memory = group._shared.run.lower(*arguments).compile().memory_analysis()
    frames = group._common["frames"].nbytes
    assert frames == 800_000 < memory.argument_size_in_bytes
    assert memory.temp_size_in_bytes + memory.generated_code_size_in_bytes < frames / 4


def test_settings_that_differ_in_numbers_share_a_program_and_the_data(recording):
    settings = [program(recording), program(recording, rate=1e-3), program(recording, gamma=0.9)]
    loop = Compiled(settings, [0, 1], log_every=50)
    assert len({id(group._shared) for group in loop._groups}) == 1
    assert set(loop._groups[0]._own) == {"returns"}
    run(loop, 100)
    alone = Compiled([program(recording, rate=1e-3)], [1], log_every=50)
    run(alone, 100)
    for one, other in zip(parameters(loop, 3), parameters(alone, 0), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_resumed_loop_ends_in_the_same_bits_and_refuses_other_data(recording, tmp_path):
    def make():
        return Compiled([program(recording, reward_noise=0.5)], [0, 1], log_every=20)

    whole, first, second = make(), make(), make()
    assert isinstance(first, Loop) and first.unit == "updates"
    expected = run(whole, 100)
    assert second.warm_up(100) > 0
    lines = run(first, 60)
    saved = first.save()
    tree = jax.tree.map(lambda leaf: jnp.copy(leaf), saved.tree)
    second.restore(Saved(tree, {}, saved.counters))
    lines += run(second, 100)
    assert lines == expected and second.counts == {"updates": 100}
    for one, other in zip(parameters(second, 1), parameters(whole, 1), strict=True):
        np.testing.assert_array_equal(one, other)
    changed = Compiled([program(write(tmp_path / "b", 201))], [0, 1], log_every=20)
    with pytest.raises(UserError, match=r"changed since the checkpoint: steps was 400 rows .* is 402 rows"):
        changed.restore(saved)


def test_a_line_has_the_mean_the_standard_deviation_and_each_lane(recording):
    loop = Compiled([program(recording)], [0, 1], log_every=50)
    ((kind, line),) = run(loop, 50)
    assert kind == "train" and line["loss"] == pytest.approx(np.mean(line["loss_each"]))
    assert not any("episode" in name or "epsilon" in name for name in line)


def test_a_diverged_lane_is_named(recording):
    loop = Compiled([program(recording, (4, 5), rate=1e30)], [4, 5], log_every=100)
    with pytest.raises(Diverged, match=r"seed 4: a loss or parameter is not finite after update 100"):
        run(loop, 400)
