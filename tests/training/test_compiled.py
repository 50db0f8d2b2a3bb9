"""Many lanes in one program learn exact values, have the same bits as each alone, and write in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlcls import heads, networks
from rlcls._errors import UserError
from rlcls.agents import DQN
from rlcls.envs.jax_vector import JaxVectorEnv
from rlcls.envs.probe import PROBES
from rlcls.replay import ArrayReplay
from rlcls.training import Compiled, Diverged, LinearDecay, Program
from rlcls.training.loop import Saved

GAMMA = 0.5
HEADS = {
    "mse": heads.make("mse"),
    "hlgauss": heads.make("hlgauss", vmin=-2.0, vmax=2.0, num_bins=51),
    "two_hot": heads.make("two_hot", vmin=-2.0, vmax=2.0, num_bins=51),
    "c51": heads.make("c51", vmin=-2.0, vmax=2.0, num_bins=51),
    "quantile": heads.make("quantile", num_quantiles=11),
}


def program(game="probe/policy", head="mse", *, rate=1e-2, num_envs=4, update_period=4, vmap=None, **replay):
    probe = PROBES[game]
    env = JaxVectorEnv(probe, num_envs, name=game)
    agent = DQN(
        env.spec,
        functools.partial(networks.MLP, hidden=(16,)),
        HEADS[head],
        learning_rate=rate,
        optimizer=functools.partial(optax.adam, eps=1e-5),
        target_period=20,
    )
    options = {"capacity": 512, "min_size": 32, "gamma": GAMMA} | replay
    return Program(
        agent,
        env,
        ArrayReplay.of(env, **options),
        exploration=LinearDecay(1.0, 0.5, 1000),
        batch_size=16,
        update_period=update_period,
        vmap=vmap,
    )


def parameters(loop, lane):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(loop.acting()[str(lane)])]


def run(loop, until):
    lines = []
    while loop.counts["agent_steps"] < until:
        lines += loop.advance()
    return lines


def test_noise_raises_learnt_values_by_its_mean_and_no_reported_return():
    setting = program("probe/policy", reward_noise=1.0)
    loop = Compiled([setting], [0, 1], log_every=8000)
    ((_, line),) = run(loop, 8000)
    probe = PROBES["probe/policy"]
    values = setting.agent.q_values(loop.acting()["1"], jnp.asarray(probe.observations()))
    np.testing.assert_allclose(values, probe.q_values(GAMMA) + 0.5, atol=0.2)
    # An episode is one step with a return of -1 or 1, so the sum of the 4,000 returns is a whole number.
    for mean, count in zip(line["episode_return_each"], line["episodes_each"], strict=True):
        assert abs(mean * count - round(mean * count)) < 1e-2


# Every head with a uniform replay, and every game with a prioritized one. Heads and replays do not affect each other.
@pytest.mark.parametrize(
    ("game", "head", "prioritized"),
    [
        *(("probe/policy", head, False) for head in HEADS),
        *((game, "hlgauss", True) for game in ("probe/two_step", "probe/policy")),
        ("probe/two_step", "mse", False),
        ("probe/two_step", "quantile", True),
    ],
)
def test_every_lane_learns_the_exact_values(game, head, prioritized):
    setting = program(game, head, prioritized=prioritized)
    loop = Compiled([setting], [0, 1], log_every=8000)
    run(loop, 8000)
    probe = PROBES[game]
    for acting in loop.acting().values():
        values = setting.agent.q_values(acting, jnp.asarray(probe.observations()))
        np.testing.assert_allclose(values, probe.q_values(GAMMA), atol=0.06)


@pytest.mark.parametrize(
    "options", [{}, {"prioritized": True, "n_step": 3}, {"num_envs": 2, "update_period": 8}]
)
def test_a_seed_among_others_has_the_bits_of_that_seed_alone(options):
    together = Compiled([program(**options)], [5, 6, 7], log_every=400)
    alone = Compiled([program(**options)], [7], log_every=160)
    run(together, 2400)
    run(alone, 2400)
    for one, other in zip(parameters(together, 2), parameters(alone, 0), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((a != b).any() for a, b in zip(parameters(together, 1), parameters(alone, 0), strict=True))


def test_lanes_as_one_batched_computation_learn_the_same_up_to_rounding():
    batched = Compiled([program(vmap=True)], [6, 7], log_every=800)
    alone = Compiled([program(vmap=False)], [7], log_every=800)
    for loop in (batched, alone):
        run(loop, 800)
    assert len(batched._groups) == 1
    for one, other in zip(parameters(batched, 1), parameters(alone, 0), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_settings_that_differ_in_numbers_share_a_program_and_learn_as_alone():
    rates = (1e-3, 1e-2)
    loop = Compiled([program(rate=rate) for rate in rates], [0, 3], log_every=400)
    assert len({id(group._shared) for group in loop._groups}) == 1
    assert loop.lanes == [(0, 0), (0, 3), (1, 0), (1, 3)]
    run(loop, 1200)
    for number, rate in enumerate(rates):
        alone = Compiled([program(rate=rate)], [3], log_every=400)
        run(alone, 1200)
        for one, other in zip(parameters(loop, 2 * number + 1), parameters(alone, 0), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_settings_with_different_networks_run_one_after_another():
    settings = [program(head="mse"), program(head="hlgauss"), program(head="mse", rate=1e-3)]
    loop = Compiled(settings, [0], log_every=400)
    assert [group.lanes for group in loop._groups] == [[0], [2], [1]]
    (kind, line), *_ = run(loop, 400)
    assert kind == "train" and len(line["loss_each"]) == 3
    assert line["loss"] == pytest.approx(np.mean(line["loss_each"]))


def test_a_line_has_the_mean_the_standard_deviation_and_each_lane():
    loop = Compiled([program()], [0, 1, 2], log_every=800)
    lines = [values for _, values in run(loop, 2400)]
    assert len(lines) == 3
    for line in lines:
        for name in ("loss", "episode_return", "episode_length", "episodes"):
            each = line[f"{name}_each"]
            assert line[name] == pytest.approx(np.mean(each))
            assert line[f"{name}_std"] == pytest.approx(np.std(each))
    # An episode of this probe is a step, and the observation after it takes a step of its own.
    assert lines[-1]["episodes"] == 1200
    assert lines[-1]["episode_length"] == 1.0
    assert loop.counts == {"agent_steps": 2400, "frames": 2400, "updates": (2400 - 32) // 4}
    (single,) = run(Compiled([program()], [0], log_every=800), 800)
    assert single[1]["loss"] == pytest.approx(lines[0]["loss_each"][0])
    assert not any(name.endswith("_each") for name in single[1])


@pytest.mark.parametrize("vmap", (True, False))
def test_a_resumed_loop_ends_in_the_same_bits(vmap):
    whole = Compiled([program(vmap=vmap, reward_noise=0.3)], [0, 1], log_every=80)
    expected = run(whole, 800)
    first = Compiled([program(vmap=vmap, reward_noise=0.3)], [0, 1], log_every=80)
    first.warm_up(360)  # a run of 360 steps ends between two lines
    lines = run(first, 360)
    saved = first.save()
    tree = jax.tree.map(lambda leaf: jnp.copy(leaf), saved.tree)
    second = Compiled([program(vmap=vmap, reward_noise=0.3)], [0, 1], log_every=80)
    second.warm_up(800)
    second.restore(Saved(tree, {}, saved.counters))
    lines += run(second, 800)
    assert lines == expected
    for one, other in zip(parameters(second, 1), parameters(whole, 1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_program_writes_in_place_and_branches():
    loop = Compiled([program(capacity=200_000, vmap=True)], [0, 1], log_every=400)
    group = loop._groups[0]
    ends = jnp.zeros((), jnp.int32)
    compiled = group._shared.run.lower(group.state, [], group._seeds, {}, {}, ends, ends).compile()
    ring = 2 * program(capacity=200_000).replay.nbytes
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= ring
    assert memory.temp_size_in_bytes < ring / 10
    assert " conditional(" in compiled.as_text()


def test_a_diverged_lane_is_named():
    loop = Compiled([program(rate=1e30)], [4, 5], log_every=4000)
    with pytest.raises(
        Diverged, match=r"seed 4: a loss or parameter is not finite after update \d+, and was finite after"
    ):
        run(loop, 8000)


def test_a_reward_that_is_not_finite_is_named_even_if_it_is_clipped():
    setting = program(reward_clip=1.0)
    broken = setting.env.env

    class Broken:
        spec = broken.spec
        reset = staticmethod(broken.reset)

        @staticmethod
        def step(state, action, key):
            state, observation, reward, terminated, truncated = broken.step(state, action, key)
            is_rare = jax.random.uniform(key) < 0.01
            return state, observation, jnp.where(is_rare, jnp.inf, reward), terminated, truncated

    env = JaxVectorEnv(Broken(), 4, name="probe/broken")
    options = {"exploration": LinearDecay(), "batch_size": 16, "update_period": 4}
    loop = Compiled([Program(setting.agent, env, setting.replay, **options)], [3], log_every=1000)
    with pytest.raises(
        UserError, match=r"probe/broken: a reward or an observation of seed 3 is not finite between"
    ):
        run(loop, 4000)
    with pytest.raises(RuntimeError, match="halfway"):
        loop.save()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Compiled([program()], [2**32], log_every=100),
            r"seeds must be different numbers below 2\*\*32",
        ),
        (
            lambda: Compiled([program()], [], log_every=100),
            "seeds must be different numbers below .*, at least one",
        ),
        (lambda: Compiled([program()], [1, 1], log_every=100), "seeds must be different numbers"),
        (lambda: program(num_envs=4, update_period=6), "a multiple or a divisor of env.num_envs"),
        (lambda: program(update_period=0), "update_period must be at least 1, not 0"),
        (
            lambda: Compiled([program(), program(min_size=400)], [0], log_every=100),
            "settings that train together must have equal env.num_envs",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(make, words):
    with pytest.raises(ValueError, match=words):
        make()
