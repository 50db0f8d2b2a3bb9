"""The Q-Transformer reaches the fixed point that its equation has in closed form, and decodes what it was taught."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from rlcls import heads, networks
from rlcls.agents import QTransformer, QTransformerBC
from rlcls.agents.action_bins import ActionBins
from rlcls.spec import Spec
from rlcls.transition import Transition

WIDE = {"vmin": -0.25, "vmax": 1.25, "num_bins": 31}
HEADS = {
    "mse": {},
    "huber": {},
    "bce": {},
    "two_hot": WIDE,
    "hlgauss": WIDE | {"sigma_ratio": 0.75},
    "c51": WIDE,
    "mse_softmax": WIDE,
}
TOKENS, VALUES = 2, 3
SPEC = Spec(jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((TOKENS,), np.int32), VALUES, None)
REWARDS = np.array([[0.2, 0.4, 0.1], [0.9, 0.0, 0.3], [0.5, 0.6, 0.7]], np.float32)
SHARES = np.array(
    [[0.1, 0.1, 0.05], [0.05, 0.2, 0.15], [0.15, 0.1, 0.1]], np.float32
)  # of each pair of tokens


def make(head="mse", kind=QTransformer, spec=SPEC, **options):
    options = {"learning_rate": 1e-2, "target_period": 20, "layers": 1, "width": 16, "heads": 2, **options}
    backbone = functools.partial(networks.MLP, hidden=(16,))
    return kind(spec, backbone, heads.make(head, **HEADS[head]), **options)


def recorded(**fields):
    """Every action once in the one state, weighted by its share; each ends the episode."""
    first, second = (index.reshape(-1) for index in np.indices(REWARDS.shape))
    count, observation = first.size, np.ones((first.size, 1), np.float32)
    values = {
        "observation": observation,
        "action": np.stack([first, second], axis=1).astype(np.int32),
        "reward": REWARDS.reshape(-1),
        "discount": np.zeros(count, np.float32),
        "next_observation": observation,
        "weight": SHARES.reshape(-1) * count,
        "next_action": np.zeros((count, TOKENS), np.int32),
        "return_to_go": REWARDS.reshape(-1),
    }
    return Transition(**{**values, **fields})


def learn(agent, batch, updates=600):
    """The state after so many updates on the same batch."""

    @jax.jit
    def run(key):
        return jax.lax.fori_loop(
            0, updates, lambda _, state: agent.update(state, batch, key)[0], agent.init(key)
        )

    return run(jax.random.key(1))


def values_after(agent, network, observations, tokens):
    """The values of all tokens by the whole sequence at once: [sequence, position, value]."""
    outputs, _, _ = jax.jit(agent._apply, static_argnames="train")(
        *network, observations, tokens, train=False
    )
    return np.asarray(agent.head.value(outputs))


def taught(agent, state):
    """The values of all tokens after each first token: [first token, position, value]."""
    tokens = np.stack([np.arange(VALUES), np.zeros(VALUES, int)], axis=1).astype(np.int32)
    return values_after(agent, state.online, np.ones((VALUES, 1), np.float32), tokens)


def fixed_point(shares, targets, alpha):
    """The value of what has this share of the data, if the others are pulled to 0 with weight alpha."""
    return shares * targets / (shares + alpha * (1 - shares))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_reaches_the_conservative_fixed_point(head):
    alpha = 0.5
    agent = make(head, alpha=alpha, monte_carlo=False)
    values = taught(agent, learn(agent, recorded()))
    first = SHARES.sum(axis=1)
    second = fixed_point(SHARES / first[:, None], REWARDS, alpha)
    np.testing.assert_allclose(values[:, 1], second, atol=0.03)
    np.testing.assert_allclose(values[0, 0], fixed_point(first, second.max(axis=1), alpha), atol=0.04)


def test_without_conservatism_the_values_and_the_greedy_action_are_the_best_of_all_combinations():
    agent = make(alpha=0.0, monte_carlo=False)
    state = learn(agent, recorded())
    values = taught(agent, state)
    np.testing.assert_allclose(values[:, 1], REWARDS, atol=0.03)
    np.testing.assert_allclose(values[0, 0], REWARDS.max(axis=1), atol=0.03)
    action = jax.jit(agent.act)(agent.acting(state), np.ones((1, 1), np.float32), jax.random.key(0), 0.0)
    best = np.unravel_index(REWARDS.argmax(), REWARDS.shape)
    assert action.dtype == jnp.int32 and action.tolist() == [list(best)]


def scrambled(agent):
    """A state whose output layers are not 0."""

    @jax.jit
    def make_state(key):
        state = agent.init(key)
        leaves, structure = jax.tree.flatten(state.params)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)
        ]
        return state._replace(params=jax.tree.unflatten(structure, noisy))

    return make_state(jax.random.key(0))


def test_decoding_with_remembered_keys_gives_the_outputs_of_the_whole_sequence():
    spec = SPEC._replace(
        observation=jax.ShapeDtypeStruct((3, 2), np.float32),
        action=jax.ShapeDtypeStruct((4,), np.int32),
        num_actions=5,
    )
    backbone = functools.partial(networks.Transformer, layers=1, width=16, heads=2, pool="none")
    options = {"layers": 2, "width": 16, "heads": 2, "sigma_reparam": True}
    agent = QTransformer(spec, backbone, heads.MSE(), **options)
    state = scrambled(agent)
    observations = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
    tokens = jax.jit(agent.act)(agent.acting(state), observations, jax.random.key(0), 0.0)
    values = jax.jit(agent.q_values)(agent.acting(state), observations)
    chex.assert_trees_all_close(values, values_after(agent, state.online, observations, tokens), atol=1e-5)
    np.testing.assert_array_equal(tokens, np.argmax(values, axis=-1))
    first, _, _ = jax.jit(functools.partial(agent._apply, train=False, method="first"))(
        *state.online, observations
    )
    chex.assert_trees_all_close(agent.head.value(first), values[:, 0], atol=1e-5)
    assert len(np.unique(tokens)) > 1


def oracle_loss(values, targets, batch, alpha, conservatism, minimum_return):
    """The equation of the class in float64, for squared errors."""
    total = 0.0
    for i, action in enumerate(batch.action):
        for j, token in enumerate(action):
            row = values[i, j].astype(np.float64)
            pull = sum((row[b] - minimum_return) ** 2 for b in range(len(row)) if b != token)
            if conservatism == "softmax":
                pull = logsumexp(row) - row[token]
            total += batch.weight[i] * ((row[token] - targets[i, j]) ** 2 + alpha * pull)
    return total / batch.action.size


@pytest.mark.parametrize(
    ("monte_carlo", "double", "conservatism"), [(False, True, "unseen"), (True, False, "softmax")]
)
def test_the_loss_is_its_equation(monte_carlo, double, conservatism):
    options = {"alpha": 0.7, "conservatism": conservatism, "minimum_return": -0.5}
    agent = make(monte_carlo=monte_carlo, double=double, **options)
    state = scrambled(agent)
    state = state._replace(target_params=jax.tree.map(lambda leaf: 0.7 * leaf + 0.1, state.params))
    random = np.random.default_rng(2)
    batch = recorded(
        discount=np.full(9, 0.9, np.float32),
        next_observation=random.normal(size=(9, 1)).astype(np.float32),
        return_to_go=random.normal(size=9).astype(np.float32),
    )

    values = functools.partial(values_after, agent, tokens=batch.action)
    now, later = (values(state.target, each) for each in (batch.observation, batch.next_observation))
    choose_now, choose_later = now, later
    if double:
        choose_now = values(state.online, batch.observation)
        choose_later = values(state.online, batch.next_observation)
    targets = np.zeros((9, 2))
    for i in range(9):
        targets[i, 0] = now[i, 1, choose_now[i, 1].argmax()]
        targets[i, 1] = batch.reward[i] + 0.9 * later[i, 0, choose_later[i, 0].argmax()]
        if monte_carlo:
            targets[i] = np.maximum(targets[i], batch.return_to_go[i])
    expected = oracle_loss(values(state.online, batch.observation), targets, batch, 0.7, conservatism, -0.5)
    _, info = jax.jit(agent.update)(state, batch, jax.random.key(0))
    np.testing.assert_allclose(info.metrics["loss"], expected, rtol=1e-4)
    assert info.priorities.shape == (9,)


@given(
    st.integers(1, 4),
    st.integers(2, 12),
    st.integers(1, 3),
    st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4),
)
def test_a_continuous_action_lies_in_its_bin_and_its_centre_has_the_same_tokens(size, bins, levels, numbers):
    low, high = tuple(-1.0 - i for i in range(size)), tuple(0.5 + i for i in range(size))
    division = ActionBins(low, high, bins, levels)
    action = np.clip(np.array([numbers[:size]], np.float32), np.float32(low), np.float32(high))
    tokens = division.encode(action)
    centre = division.decode(tokens)
    assert tokens.shape == (1, size * levels) and int(tokens.min()) >= 0 and int(tokens.max()) < bins
    half = (np.array(high) - low) / bins**levels / 2
    assert (np.abs(np.asarray(centre) - action) <= half * 1.001 + 1e-6).all()
    np.testing.assert_array_equal(division.encode(centre), tokens)


@pytest.mark.parametrize("bins", [3, 11, 201])
def test_the_centre_of_the_middle_bin_is_exactly_the_middle(bins):
    division = ActionBins((-1.0,), (1.0,), bins)
    assert jax.jit(division.decode)(np.array([[bins // 2]], np.int32)) == 0


def test_continuous_actions_are_learnt_and_played_as_centres_of_bins():
    range_ = np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32)
    spec = Spec(SPEC.observation, jax.ShapeDtypeStruct((2,), np.float32), None, range_)
    agent = make(spec=spec, bins=4, levels=2, alpha=0.5)
    state = scrambled(agent)
    actions = jax.jit(agent.act)(agent.acting(state), np.ones((5, 1), np.float32), jax.random.key(0), 1.0)
    assert actions.shape == (5, 2) and actions.dtype == jnp.float32
    assert (np.asarray(actions) > range_[0]).all() and (np.asarray(actions) < range_[1]).all()
    batch = recorded(action=np.tile(actions[:1], (9, 1)))
    _, info = jax.jit(agent.update)(state, batch, jax.random.key(0))
    chex.assert_tree_all_finite(info.metrics)


def test_cloning_learns_the_shares_of_the_tokens():
    agent = make(kind=QTransformerBC)
    state = learn(agent, recorded())
    policy = np.asarray(jax.nn.softmax(taught(agent, state)))
    first = SHARES.sum(axis=1)
    np.testing.assert_allclose(policy[0, 0], first, atol=0.02)
    np.testing.assert_allclose(policy[:, 1], SHARES / first[:, None], atol=0.02)


@pytest.mark.untyped
def test_what_it_cannot_take_is_one_line():
    discrete = SPEC._replace(action=jax.ShapeDtypeStruct((), np.int32))
    with pytest.raises(ValueError, match=r"^QTransformer needs actions of several tokens or continuous ones"):
        make(spec=discrete)
    endless = Spec(
        SPEC.observation, jax.ShapeDtypeStruct((1,), np.float32), None, (np.array([-1.0]), np.array([np.inf]))
    )
    with pytest.raises(ValueError, match=r"^an action between -1\.0 and inf cannot be divided into bins$"):
        make(spec=endless)
    with pytest.raises(ValueError, match=r"^alpha must be at least 0, not -1$"):
        make(alpha=-1)
    with pytest.raises(ValueError, match=r"^conservatism must be one of unseen, softmax, not all$"):
        make(conservatism="all")
    agent = make()
    with pytest.raises(ValueError, match=r"^monte_carlo=true needs batches with return_to_go"):
        jax.eval_shape(
            lambda key: agent.update(agent.init(key), recorded(return_to_go=None), key), jax.random.key(0)
        )


def test_an_action_of_one_token_is_learnt_and_its_state_has_no_empty_array():
    spec = SPEC._replace(action=jax.ShapeDtypeStruct((1,), np.int32))
    agent = make(spec=spec)
    state = scrambled(agent)
    assert all(leaf.size for leaf in jax.tree.leaves(state.params))
    state, _ = jax.jit(agent.update)(state, recorded(action=recorded().action[:, :1]), jax.random.key(0))
    chex.assert_tree_all_finite(state.params)


@pytest.mark.parametrize("embeddings", [None, np.array([[0.3, -1.0, 0.5], [0.1, 0.8, -0.2]])])
def test_one_network_learns_tasks_that_reward_opposite_actions(embeddings):
    """The observation is the same in both tasks: only the vector of the task tells them apart."""
    frames, game = SPEC.observation, jax.ShapeDtypeStruct((), np.int32)
    spec = SPEC._replace(observation={"frames": frames, "game": game})
    agent = make("hlgauss", spec=spec, games=2, embeddings=embeddings, monte_carlo=False, alpha=0.01)
    one, count = recorded(), REWARDS.size
    tasks = np.repeat(np.arange(2, dtype=np.int32), count)
    seen = {"frames": np.ones((2 * count, 1), np.float32), "game": tasks}
    both = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), one)
    both = both._replace(
        observation=seen,
        next_observation=seen,
        reward=np.concatenate([one.reward, 1 - one.reward]),
        weight=np.ones(2 * count, np.float32),
    )
    state = learn(agent, both)
    observations = {"frames": np.ones((2, 1), np.float32), "game": np.arange(2, dtype=np.int32)}
    actions = jax.jit(agent.act)(state.online, observations, jax.random.key(0), 0.0)
    best = [np.unravel_index(np.argmax(table), table.shape) for table in (REWARDS, 1 - REWARDS)]
    np.testing.assert_array_equal(actions, best)
    for nowhere in (-1, 2):
        observations["game"] = np.full(2, nowhere, np.int32)
        assert np.isnan(agent.q_values(state.online, observations)).any()


@pytest.mark.untyped
def test_tasks_that_do_not_fit_are_one_line():
    frames, game = SPEC.observation, jax.ShapeDtypeStruct((), np.int32)
    several = SPEC._replace(observation={"frames": frames, "game": game})
    for options, message in (
        ({"games": 2}, "games=2 needs observations of frames and game; data.games mixes them"),
        (
            {"spec": several},
            "QTransformer needs the number of games, games=, for observations of frames and game",
        ),
        (
            {"spec": several, "games": 2, "embeddings": np.ones((3, 4))},
            "embeddings must be finite numbers of shape",
        ),
        ({"spec": several, "games": -1}, "games must be at least 0, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_a_history_of_pictures_is_read_picture_by_picture_with_a_vector_for_each_place():
    spec = SPEC._replace(observation=jax.ShapeDtypeStruct((2, 3, 16, 16), np.uint8))
    agent = QTransformer(spec, networks.IMPALA, heads.make("mse"), layers=1, width=16, heads=2)
    network = agent._make_network(nnx.Rngs(0))
    pictures = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 16, 16), np.uint8)
    places = np.asarray(network.positions[...])[:, 0]
    tokens = np.asarray(network._observe(jnp.asarray(pictures)))
    swapped = np.asarray(network._observe(jnp.asarray(pictures[:, ::-1])))
    np.testing.assert_allclose((tokens - places)[:, ::-1], swapped - places, atol=1e-4)
    assert np.abs(places[0] - places[1]).max() > 0.5 and np.abs((tokens - places)[:, 0]).max() > 1e-2
    assert agent.q_values(agent.init(jax.random.key(0)).online, pictures).shape == (4, TOKENS, VALUES)
