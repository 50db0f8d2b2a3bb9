"""Offline training learns exact values, and its position in the data is the update number."""

import chex
import jax
import numpy as np
import pytest

from rlcls import heads, networks
from rlcls._errors import UserError
from rlcls.agents import DQN
from rlcls.envs.probe import PROBES
from rlcls.runs import Checkpoints, checkpoint
from rlcls.spec import Spec
from rlcls.training import Dataset, Loop, Offline
from rlcls.transition import Transition

PROBE, GAMMA = PROBES["probe/policy"], 0.5


class Recorded:
    """Every state and action of a probe, sampled with replacement."""

    spec = Spec(jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((), np.int32), 2, None)

    def sample(self, size, seed, number):
        states, actions = np.random.default_rng([seed, number]).integers(0, 2, (2, size))
        observations = PROBE.observations()[states]
        batch = Transition(
            observation=observations,
            action=actions.astype(np.int32),
            reward=np.array(PROBE.rewards, np.float32)[states, actions],
            discount=np.zeros(size, np.float32),
            next_observation=observations,
            weight=np.ones(size, np.float32),
        )
        return batch, (states, actions)


def make(**options):
    backbone = lambda shape, *, rngs: networks.MLP(shape, hidden=(32,), rngs=rngs)  # noqa: E731
    agent = DQN(Recorded.spec, backbone, heads.make("mse"), learning_rate=2e-2, target_period=20)
    return agent, Offline(agent, Recorded(), **{"batch_size": 16, "log_every": 25, **options})


def run(loop, until):
    lines = []
    while loop.number < until:
        lines += [(loop.number, kind) for kind, _ in loop.advance()]
    return lines


def test_an_agent_learns_the_exact_values_from_data_alone():
    agent, loop = make()
    assert isinstance(loop, Loop) and isinstance(Recorded(), Dataset)
    run(loop, 300)
    np.testing.assert_allclose(
        agent.q_values(loop.acting(), PROBE.observations()), PROBE.q_values(GAMMA), atol=0.05
    )
    loop.close()


def test_there_is_a_line_for_every_period():
    _, loop = make()
    assert run(loop, 75) == [(25, "train"), (50, "train"), (75, "train")] and loop.counts == {"updates": 75}
    loop.close()


@pytest.mark.parametrize("updates", [10, 35])
def test_a_resumed_loop_ends_in_the_same_bits(updates, tmp_path):
    (_, first), (_, second) = make(), make()
    assert second.warm_up(1000) > 0
    run(first, updates)
    Checkpoints(tmp_path, 2).save(updates, first.save())
    fresh = second.save()
    second.restore(checkpoint.load(tmp_path)[0].saved(fresh.tree, fresh.rows))
    ends = []
    for loop in (first, second):
        lines = run(loop, updates + 40)
        saved = loop.save()
        ends.append((lines, jax.tree.map(np.array, saved.tree), saved.arrays, saved.counters))
        loop.close()
    chex.assert_trees_all_equal(*ends)


def test_a_loop_does_not_resume_with_other_data():
    (_, before), (_, now) = make(), make()
    before._data.identity = {"Pong": "500 rows (1f3a)", "Qbert": "20 rows (77aa)"}
    now._data.identity = {"Pong": "480 rows (9c02)", "Qbert": "20 rows (77aa)"}
    with pytest.raises(
        UserError, match=r"changed since the checkpoint: Pong was 500 rows \(1f3a\) and is 480 rows"
    ):
        now.restore(before.save())
    now._data.identity = dict(before._data.identity)
    now.restore(before.save())
    for loop in (before, now):
        loop.close()


def test_a_block_in_which_the_data_failed_is_saved_and_continued_with_the_same_bits(tmp_path):
    class Failing(Recorded):
        def sample(self, size, seed, number):
            if number == 33:
                raise ZeroDivisionError
            return super().sample(size, seed, number)

    (agent, whole), (_, second) = make(), make()
    first = Offline(agent, Failing(), batch_size=16, log_every=25)
    with pytest.raises(ZeroDivisionError):
        run(first, 60)
    assert first.counts == {"updates": 25}
    Checkpoints(tmp_path, 2).save(25, first.save())
    fresh = second.save()
    second.restore(checkpoint.load(tmp_path)[0].saved(fresh.tree, fresh.rows))
    run(whole, 25)
    ends = []
    for loop in (second, whole):
        lines = run(loop, 75)
        saved = loop.save()
        ends.append((lines, jax.tree.map(np.array, saved.tree), saved.arrays, saved.counters))
        loop.close()
    chex.assert_trees_all_equal(*ends)
    first.close()
