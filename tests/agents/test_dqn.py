"""DQN learns the exact values of probe MDPs with every head, and its update is a pure function."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rlcls import heads, networks
from rlcls.agents import DQN
from rlcls.envs.probe import PROBES
from rlcls.spec import Spec
from rlcls.transition import Transition

GAMMA = 0.5
HEADS = {
    "mse": {},
    "huber": {},
    "two_hot": {"vmin": -2, "vmax": 2, "num_bins": 21},
    "hlgauss": {"vmin": -2, "vmax": 2, "num_bins": 21, "sigma_ratio": 0.75},
    "c51": {"vmin": -2, "vmax": 2, "num_bins": 21},
    "mse_softmax": {"vmin": -2, "vmax": 2, "num_bins": 21},
    "one_hot": {"vmin": -2, "vmax": 2, "num_bins": 41},
    "bce": {"vmin": -2, "vmax": 2},
    "quantile": {"num_quantiles": 11},
}


def spec(num_actions=2):
    one = jax.ShapeDtypeStruct((1,), np.float32)
    return Spec(one, jax.ShapeDtypeStruct((), np.int32), num_actions, None)


def make(head, num_actions=2, **options):
    head = heads.make(head, **HEADS[head]) if isinstance(head, str) else head
    backbone = functools.partial(networks.MLP, hidden=(32,))
    return DQN(spec(num_actions), backbone, head, **{"learning_rate": 3e-2, "target_period": 20, **options})


def every_transition(probe):
    """Every transition of a probe, as a batch of four transitions with two actions.

    The transitions of a probe with one action or one state are repeated, so that all probes share one compilation.
    """
    states, actions = (a.reshape(-1) for a in np.indices((probe.num_states, 2)))
    states, actions = np.resize(states, 4), np.resize(actions, 4)
    observations = probe.observations()
    after = np.array([s if probe.successors[s] is None else probe.successors[s] for s in states])
    over = np.array([probe.successors[s] is None for s in states])
    rewards = np.array(probe.rewards, np.float32)[states, np.minimum(actions, probe.num_actions - 1)]
    return Transition(
        observation=observations[states],
        action=actions.astype(np.int32),
        reward=rewards,
        discount=np.where(over, 0, GAMMA).astype(np.float32),
        next_observation=observations[after],
        weight=np.ones(len(states), np.float32),
    )


def exact(probe):
    """The values of both actions in every state."""
    return np.broadcast_to(probe.q_values(GAMMA), (probe.num_states, 2))


def learner(agent, updates=600):
    """batch -> the state after `updates` updates, in one compiled scan."""

    @jax.jit
    def run(batch, key):
        step = lambda state, i: agent.update(state, batch, jax.random.fold_in(key, i))  # noqa: E731
        return jax.lax.scan(step, agent.init(key), jnp.arange(updates))[0]

    return lambda batch: run(batch, jax.random.key(0))


def learn(agent, batch, updates=600):
    return learner(agent, updates)(batch)


def values(agent, state, observations):
    return agent.q_values(agent.acting(state), observations)


@pytest.mark.parametrize("head", heads.BY_NAME)
def test_dqn_learns_the_exact_values_of_every_probe(head):
    agent = make(head)
    learns = learner(agent)
    for probe in PROBES.values():
        learnt = values(agent, learns(every_transition(probe)), probe.observations())
        np.testing.assert_allclose(learnt, exact(probe), atol=0.05, err_msg=probe.name)


CLASSES = {"vmin": -2, "vmax": 2, "num_bins": 21}
VARIANTS = [
    heads.make("two_hot", **CLASSES, criterion="generalised"),
    heads.make("two_hot", **CLASSES, criterion="ordinal"),
    heads.make("hlgauss", **CLASSES, criterion="generalised"),
    heads.make("hlgauss", **CLASSES, criterion="ordinal"),
    heads.make("c51", **CLASSES, criterion="ordinal"),
    heads.make("hlgauss", **CLASSES, scalar_transform="symlog"),
    heads.make("hlgauss", **CLASSES, scalar_transform="arcsinh"),
    heads.make("c51", **CLASSES, scalar_transform="signed_hyperbolic"),
    heads.make("c51", **CLASSES, bin_transform="arcsinh"),
    heads.TwoHot(heads.Support.symexp(-2, 2, 21)),
    heads.HLGauss(heads.Support.symexp(-2, 2, 21, on="edges")),
]


@pytest.mark.parametrize("head", VARIANTS, ids=lambda head: "-".join(map(str, head.to_dict().values())))
def test_dqn_learns_with_other_criteria_and_supports(head):
    """The learning rate is 0.01: at 0.03, the rate of the other tests, a bounded criterion can stop learning."""
    probe = PROBES["probe/two_step"]
    agent = make(head, learning_rate=1e-2)
    state = learn(agent, every_transition(probe), updates=400)
    early, late = values(agent, state, probe.observations())[:, 0]
    # The decoded target. It differs from the value for HL-Gauss on bins of unequal width.
    read = lambda value: head.decode(head.encode(np.float64(value)))  # noqa: E731
    np.testing.assert_allclose([early, late], [read(GAMMA * read(1.0)), read(1.0)], atol=0.01)
    np.testing.assert_allclose([early, late], probe.q_values(GAMMA)[:, 0], atol=0.04)


def test_with_scaled_rewards_dqn_learns_values_outside_the_support():
    probe, head = PROBES["probe/two_step"], heads.make("two_hot", **CLASSES)
    returns = 50 * probe.q_values(GAMMA)[:, 0]
    scale = heads.reward_scale(returns, head.support)
    assert head.clip_fraction(returns) == 1 and head.clip_fraction(scale * returns) == 0
    batch = every_transition(probe)
    batch = batch._replace(reward=(50 * scale * batch.reward).astype(np.float32))
    agent = make(head, learning_rate=1e-2)
    learnt = values(agent, learn(agent, batch, updates=400), probe.observations()) / scale
    np.testing.assert_allclose(learnt[:, 0], returns, rtol=0.01)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("hlgauss", {"double": True}),
        ("c51", {"double": True}),
        ("hlgauss", {"dueling": True}),
        ("mse", {"dueling": True}),
        ("hlgauss", {"target_period": 1, "target_tau": 0.1}),
    ],
)
def test_double_dueling_and_soft_targets_learn_the_same_values(head, options):
    agent = make(head, **options)
    learns = learner(agent)
    for name in ("probe/two_step", "probe/policy"):
        probe = PROBES[name]
        learnt = values(agent, learns(every_transition(probe)), probe.observations())
        np.testing.assert_allclose(learnt, exact(probe), atol=0.05)


@pytest.fixture
def batch():
    return every_transition(PROBES["probe/policy"])


def test_the_target_is_copied_once_per_period(batch):
    agent = make("hlgauss", target_period=3)
    state = agent.init(jax.random.key(0))
    update = jax.jit(agent.update)
    for number in range(1, 8):
        before = state
        state, _ = update(state, batch, jax.random.key(1))
        expected = state.params if number % 3 == 0 else before.target_params
        chex.assert_trees_all_equal(state.target_params, expected)
    assert int(state.step) == 7


def test_soft_targets_move_by_tau(batch):
    agent = make("mse", target_period=1, target_tau=0.25)
    before = agent.init(jax.random.key(0))
    after, _ = agent.update(before, batch, jax.random.key(1))
    moved = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, after.params, before.target_params)
    chex.assert_trees_all_close(after.target_params, moved, rtol=1e-5)


class _Noisy(networks.MLP):
    """A backbone with batch statistics, a random key and a counter."""

    def __init__(self, *args, rngs, **options):
        super().__init__(*args, rngs=rngs, **options)
        self.norm, self.dropout = nnx.BatchNorm(self.num_features, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, observations):
        return self.dropout(self.norm(super().__call__(observations)))


def test_soft_targets_average_statistics_and_copy_random_keys(batch):
    backbone = functools.partial(_Noisy, hidden=(8,))
    agent = DQN(spec(), backbone, heads.make("mse"), target_period=1, target_tau=0.25)
    before = agent.init(jax.random.key(0))
    after, _ = jax.jit(agent.update)(before, batch, jax.random.key(1))
    old, online, target = (
        state["backbone"]
        for state in (before.target_network_state, after.network_state, after.target_network_state)
    )
    chex.assert_trees_all_equal_dtypes(old, online, target)
    mean = 0.25 * online["norm"]["mean"] + 0.75 * old["norm"]["mean"]
    np.testing.assert_allclose(target["norm"]["mean"], mean, rtol=1e-6)
    assert not np.array_equal(online["norm"]["mean"], mean)
    chex.assert_trees_all_equal(target["dropout"]["rngs"]["count"], online["dropout"]["rngs"]["count"])
    assert target["dropout"]["rngs"]["count"] == 1


def test_a_transition_of_weight_zero_has_no_effect(batch):
    agent = make("hlgauss")
    state = agent.init(jax.random.key(0))
    half = batch._replace(weight=np.array([1, 1, 0, 0], np.float32))
    changed = half._replace(reward=np.where(half.weight == 0, 1.7, half.reward).astype(np.float32))
    one, _ = agent.update(state, half, jax.random.key(1))
    other, _ = agent.update(state, changed, jax.random.key(1))
    chex.assert_trees_all_equal(one.params, other.params)


def test_priorities_are_the_divergences_and_not_the_losses(batch):
    agent = make("hlgauss")
    state = learn(agent, batch)
    _, info = agent.update(state, batch, jax.random.key(0))
    assert np.all(info.priorities < 0.1)
    assert float(info.metrics["loss"]) > 1.0  # at least the entropy of the targets
    np.testing.assert_allclose(info.metrics["td_divergence"], np.mean(info.priorities), rtol=1e-6)


def test_acting_explores_with_probability_epsilon():
    agent = make("hlgauss", num_actions=4)
    state = agent.init(jax.random.key(0))
    observations = np.zeros((20_000, 1), np.float32)
    act = lambda epsilon: np.asarray(  # noqa: E731
        agent.act(agent.acting(state), observations, jax.random.key(2), epsilon)
    )
    greedy = act(0.0)
    assert (greedy == greedy[0]).all() and greedy.dtype == np.int32
    assert np.mean(act(0.4) != greedy[0]) == pytest.approx(0.4 * 3 / 4, abs=0.02)
    np.testing.assert_allclose(np.bincount(act(1.0), minlength=4) / 20_000, 0.25, atol=0.02)


def test_a_gradient_is_clipped_to_the_given_norm(batch):
    free, bounded = make("mse"), make("mse", max_gradient_norm=1e-9)
    state = free.init(jax.random.key(0))
    moved = [agent.update(state, batch, jax.random.key(0))[0] for agent in (free, bounded)]
    first = [jax.tree.leaves(each.params)[0] for each in (state, *moved)]
    change = [float(jnp.abs(after - first[0]).max()) for after in first[1:]]
    assert change[1] < change[0] * 1e-3


def test_the_learning_rate_follows_its_schedule(batch):
    falling = make("hlgauss", schedule=optax.linear_schedule(1.0, 0.0, 2, transition_begin=2))
    constant = make("hlgauss")
    update, plain = jax.jit(falling.update), jax.jit(constant.update)
    state, other = falling.init(jax.random.key(0)), constant.init(jax.random.key(0))
    key = jax.random.key(0)
    for _ in range(3):  # the rate is constant up to and including the third update
        state, other = update(state, batch, key)[0], plain(other, batch, key)[0]
        chex.assert_trees_all_close(state.params, other.params, rtol=1e-6)
    before = state
    state, other = update(state, batch, key)[0], plain(other, batch, key)[0]
    change, whole = (jax.tree.map(jnp.subtract, after.params, before.params) for after in (state, other))
    chex.assert_trees_all_close(change, jax.tree.map(lambda x: x / 2, whole), atol=1e-6)
    after, _ = update(state, batch, key)
    chex.assert_trees_all_equal(after.params, state.params)


def test_the_optimiser_can_be_any_of_optax(batch):
    agent = make("mse", optimizer=optax.sgd, learning_rate=0.1)
    state = agent.init(jax.random.key(0))
    after, _ = agent.update(state, batch, jax.random.key(0))
    target, _ = agent.targets(state, batch)
    gradients = jax.grad(lambda params: agent.loss(params, state.network_state, batch, target)[0])(
        state.params
    )
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-6)


def test_the_first_state_can_be_donated(batch):
    agent = make("hlgauss")
    jax.jit(agent.update, donate_argnums=0)(agent.init(jax.random.key(0)), batch, jax.random.key(0))


def test_the_target_network_can_act():
    agent = make("mse", target_period=1000)
    state = agent.init(jax.random.key(0))._replace(params="online", target_params="target")
    assert agent.acting(state).params == "online" and agent.acting(state, target=True).params == "target"


def test_unsuitable_specs_and_options_are_refused_in_one_line():
    head, backbone = heads.make("mse"), functools.partial(networks.MLP, hidden=(8,))
    continuous = spec()._replace(action=jax.ShapeDtypeStruct((2,), np.float32), num_actions=None)
    with pytest.raises(ValueError, match=r"^DQN needs one discrete action at a time, not float32 \[2\]"):
        DQN(continuous, backbone, head)
    tree = spec()._replace(observation={"position": spec().observation, "goal": spec().observation})
    with pytest.raises(ValueError, match=r"^DQN needs observations that are one array, not a tree \("):
        DQN(tree, backbone, head)
    with pytest.raises(ValueError, match="Nature takes observations of shape"):
        DQN(spec(), networks.Nature, head)
    for option in (
        {"games": -1},
        {"learning_rate": 0.0},
        {"target_period": 0},
        {"target_tau": 1.5},
        {"max_gradient_norm": -1.0},
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(option))} must be "):
            DQN(spec(), backbone, head, **option)


def test_games_without_suitable_observations_are_refused_in_one_line():
    head, backbone = heads.make("mse"), functools.partial(networks.MLP, hidden=(8,))
    game = jax.ShapeDtypeStruct((), np.int32)
    several = spec()._replace(observation={"frames": spec().observation, "game": game})
    with pytest.raises(ValueError, match="^games=2 needs observations with frames and game, not one array$"):
        DQN(spec(), backbone, head, games=2)
    with pytest.raises(
        ValueError, match="^DQN needs the option games, the number of games, for observations with"
    ):
        DQN(several, backbone, head)
    with pytest.raises(ValueError, match="^dueling=true is not possible with games: "):
        DQN(several, backbone, head, games=2, dueling=True)


class _Tokens(networks.MLP):
    """A backbone that returns features for each of two tokens, but has no `yields_tokens`."""

    def __call__(self, observations):
        return super().__call__(observations).reshape(len(observations), 2, -1)


def test_a_backbone_with_outputs_of_the_wrong_rank_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"_Tokens returns features of shape \(1, 2, 4\), not \[batch, num_features\]"
    ):
        DQN(spec(), functools.partial(_Tokens, hidden=(8,)), heads.make("mse"))


def test_update_compiles_once_and_runs_under_vmap_over_seeds(batch):
    agent = make("hlgauss")
    update = jax.jit(chex.assert_max_traces(agent.update, n=1))
    state = agent.init(jax.random.key(0))
    for i in range(3):
        state, _ = update(state, batch, jax.random.key(i))
    chex.clear_trace_counter()
    states = jax.vmap(agent.init)(jax.random.split(jax.random.key(0), 3))
    states, info = jax.vmap(agent.update, in_axes=(0, None, None))(states, batch, jax.random.key(0))
    assert info.metrics["loss"].shape == (3,) and len(set(np.asarray(info.metrics["loss"]).tolist())) == 3


def test_two_networks_of_one_seed_are_equal():
    agent = make("hlgauss")
    chex.assert_trees_all_equal(agent.init(jax.random.key(5)), agent.init(jax.random.key(5)))
    one, other = agent.init(jax.random.key(5)), agent.init(jax.random.key(6))
    assert not np.array_equal(jax.tree.leaves(one.params)[-1], jax.tree.leaves(other.params)[-1])


class _Embedded(DQN):
    """DQN of games that share a network and its last layer."""

    def _make_network(self, rngs):
        backbone = self._make_backbone(self.spec.observation["frames"].shape, rngs=rngs)
        return networks.MultiGameQNetwork(backbone, self.head, 2, 2, form="embedding", rngs=rngs)


@pytest.mark.parametrize("kind", [DQN, _Embedded])
def test_one_network_learns_two_games_that_contradict_each_other(kind):
    probe, head = PROBES["probe/policy"], heads.make("hlgauss", **HEADS["hlgauss"])
    seen = lambda frames, game: {"frames": frames, "game": game}  # noqa: E731
    both_games = spec()._replace(observation=seen(spec().observation, jax.ShapeDtypeStruct((), np.int32)))
    backbone = functools.partial(networks.MLP, hidden=(32,))
    agent = kind(both_games, backbone, head, learning_rate=3e-2, target_period=20, games=2)
    one = every_transition(probe)
    both = jax.tree.map(lambda x: np.concatenate([x, x]), one)
    game = np.repeat(np.arange(2, dtype=np.int32), 4)
    both = both._replace(
        observation=seen(both.observation, game),
        next_observation=seen(both.next_observation, game),
        reward=np.where(game == 0, both.reward, -both.reward),
    )
    state = learn(agent, both, updates=300)
    for number, sign in enumerate((1, -1)):
        observations = seen(probe.observations(), np.full(2, number))
        learnt = values(agent, state, observations)
        np.testing.assert_allclose(learnt, sign * probe.q_values(GAMMA), atol=0.05)
    actions = agent.act(agent.acting(state), observations, jax.random.key(0), 0.0)
    np.testing.assert_array_equal(actions, [1, 0])
    seen_inside = jax.jit(agent.diagnose)(state, both, both)
    assert seen_inside["held_out_td_error"] < 0.05 and 1 <= seen_inside["rankme"] <= 8
