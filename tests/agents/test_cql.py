"""CQL equals its equation, and learns the exact values of recorded probe MDPs with every head."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit, logsumexp, softmax

from rlcls import heads, networks
from rlcls.agents import CQL, DQN
from rlcls.envs.probe import PROBES, Probe
from rlcls.spec import Spec
from rlcls.transition import Transition

GAMMA, ALPHA = 0.5, 0.1
CLASSES = {"vmin": -2, "vmax": 2, "num_bins": 21}
HEADS = {
    "mse": {},
    "huber": {},
    "two_hot": CLASSES,
    "hlgauss": CLASSES | {"sigma_ratio": 0.75},
    "c51": CLASSES,
    "mse_softmax": CLASSES,
    "one_hot": CLASSES | {"num_bins": 41},
    "bce": {"vmin": -2, "vmax": 2},
    "quantile": {"num_quantiles": 11},
}
SPEC = Spec(jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((), np.int32), 2, None)
# The actions of the second state have the rewards 1 and 0, so the first state's value depends on the action there.
CHAIN = Probe(
    "chain",
    features=(-1.0, 1.0),
    rewards=((0.0, 0.0), (1.0, 0.0)),
    successors=(1, None),
    starts=(0,),
    closed_form=lambda gamma: [[gamma, gamma], [1.0, 0.0]],
)


def make(head, **options):
    backbone = functools.partial(networks.MLP, hidden=(32,))
    options = {"learning_rate": 3e-2, "target_period": 20, "alpha": ALPHA, **options}
    return CQL(SPEC, backbone, heads.make(head, **HEADS[head]), **options)


def recorded(probe, weight=1.0):
    """Every combination of state, action and next action of a probe: eight transitions.

    `weight` [2, 2] is the weight of each state and action. The transitions of a probe with one state or one action are
    repeated, so that all probes share one compilation.
    """
    states, actions, next_actions = (a.reshape(-1) for a in np.indices((2, 2, 2)))
    weights = np.broadcast_to(weight, (2, 2))[states, actions]
    states = np.minimum(states, probe.num_states - 1)
    over = np.array([probe.successors[s] is None for s in states])
    after = np.array([s if probe.successors[s] is None else probe.successors[s] for s in states])
    rewards = np.array(probe.rewards, np.float32)
    reward = rewards[states, np.minimum(actions, probe.num_actions - 1)]
    last = np.where(over, 0, rewards[after, np.minimum(next_actions, probe.num_actions - 1)])
    return Transition(
        observation=probe.observations()[states],
        action=actions.astype(np.int32),
        reward=reward,
        discount=np.where(over, 0, GAMMA).astype(np.float32),
        next_observation=probe.observations()[after],
        weight=weights.astype(np.float32),
        next_action=next_actions.astype(np.int32),
        return_to_go=(reward + GAMMA * last).astype(np.float32),
    )


def exact(probe):
    """The optimal values of both actions in the first and the last state."""
    values = np.broadcast_to(probe.q_values(GAMMA), (probe.num_states, 2))
    return values[[0, -1]]


def learner(agent, updates=600):
    """(batch, key) -> the state after `updates` updates."""

    @jax.jit
    def run(batch, key):
        step = lambda state, i: (agent.update(state, batch, key)[0], None)  # noqa: E731
        return jax.lax.scan(step, agent.init(key), jnp.arange(updates))[0]

    return run


def values(agent, state, probe):
    return np.asarray(agent.q_values(agent.acting(state), probe.observations()[[0, -1]]))


@pytest.mark.parametrize("head", heads.BY_NAME)
def test_cql_is_unbiased_if_the_data_is_a_softmax_of_the_optimal_values(head):
    """The gradient of the gap is softmax(Q) minus the share of each action in the data, so it is 0 for this data."""
    agent = make(head)
    learns = learner(agent)
    for probe in (*PROBES.values(), CHAIN):
        share = softmax(exact(probe), axis=-1)
        state = learns(recorded(probe, 2 * share), jax.random.key(0))
        np.testing.assert_allclose(values(agent, state, probe), exact(probe), atol=0.05, err_msg=probe.name)


@pytest.mark.parametrize(
    ("head", "target"),
    [
        ("mse", "sarsa"),
        ("hlgauss", "sarsa"),
        ("quantile", "sarsa"),
        ("c51", "sarsa"),
        ("hlgauss", "monte_carlo"),
        ("c51", "monte_carlo"),
    ],
)
def test_sarsa_and_monte_carlo_learn_the_values_of_the_behaviour_policy(head, target):
    agent = make(head, alpha=0.0, target=target)
    state = learner(agent)(recorded(CHAIN), jax.random.key(0))
    np.testing.assert_allclose(values(agent, state, CHAIN), [[GAMMA / 2] * 2, [1, 0]], atol=0.02)
    assert exact(CHAIN)[0, 0] == GAMMA


@pytest.mark.parametrize("head", ["mse", "hlgauss", "c51"])
def test_an_action_that_is_not_in_the_data_has_a_lower_value_with_every_seed(head):
    """The only action in the data costs 1, so without the gap the other action has a higher value."""
    probe, keys = PROBES["probe/action"], jax.random.split(jax.random.key(0), 8)
    batch = recorded(probe, [[2.0, 0.0], [2.0, 0.0]])
    learnt = {}
    for alpha in (0.0, 1.0):
        agent = make(head, alpha=alpha, target_period=1)
        states = jax.vmap(learner(agent, 300), in_axes=(None, 0))(batch, keys)
        learnt[alpha] = jax.vmap(
            lambda state, agent=agent: agent.q_values(agent.acting(state), batch.observation[:1])
        )(states)[:, 0]
    np.testing.assert_allclose(learnt[0.0][:, 0], -1, atol=0.05)
    assert (learnt[0.0][:, 1] > learnt[0.0][:, 0]).mean() > 0.5
    assert (learnt[1.0][:, 1] < learnt[1.0][:, 0] - 0.5).all()


# The equations in NumPy and float64, independent of the library.


def centers(head):
    if head in ("hlgauss", "one_hot"):
        edges = np.linspace(-2, 2, HEADS[head]["num_bins"] + 1)
        return (edges[1:] + edges[:-1]) / 2
    return np.linspace(-2, 2, 21)


def value(head, outputs):
    if head in ("mse", "huber"):
        return outputs[..., 0]
    if head == "bce":
        return -2 + 4 * expit(outputs[..., 0])
    if head == "quantile":
        return outputs.mean(-1)
    return softmax(outputs, axis=-1) @ centers(head)


def two_hot(scalars, points):
    """The two-hot weights of each scalar, [*b, k]."""
    width = points[1] - points[0]
    return np.maximum(1 - np.abs(np.clip(scalars, points[0], points[-1])[..., None] - points) / width, 0)


def td_loss(head, outputs, next_outputs, rewards, discounts):
    """The loss of each transition, [*b]."""
    scalars = rewards + discounts * value(head, next_outputs)
    if head == "mse" or head == "mse_softmax":
        return (value(head, outputs) - scalars) ** 2
    if head == "huber":
        error = np.abs(value(head, outputs) - scalars)
        return np.where(error <= 1, error**2 / 2, error - 1 / 2)
    if head == "bce":
        share = (scalars + 2) / 4
        return -share * np.log(expit(outputs[:, 0])) - (1 - share) * np.log(expit(-outputs[:, 0]))
    if head == "quantile":
        levels = (np.arange(11) + 0.5) / 11
        targets = rewards[:, None] + discounts[:, None] * next_outputs
        error = targets[:, None, :] - outputs[:, :, None]
        size = np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 1 / 2)
        return (np.abs(levels[:, None] - (error < 0)) * size).mean(-1).sum(-1)
    points = centers(head)
    if head == "two_hot":
        targets = two_hot(scalars, points)
    elif head == "c51":
        moved = rewards[:, None] + discounts[:, None] * points
        targets = np.einsum("bj,bjk->bk", softmax(next_outputs, axis=-1), two_hot(moved, points))
    elif head == "one_hot":
        targets = np.eye(41)[np.floor((scalars + 2) / 4 * 41).astype(int)]
    else:
        edges = np.linspace(-2, 2, 22)
        cdf = erf((edges - scalars[:, None]) / (np.sqrt(2) * 0.75 * 4 / 21))
        targets = np.diff(cdf) / (cdf[:, -1:] - cdf[:, :1])
    return -(targets * (outputs - logsumexp(outputs, axis=-1, keepdims=True))).sum(-1)


def objective(head, outputs, next_outputs, batch, target):
    """The mean weighted loss. Outputs [b, a, n] are the online network's; next outputs [b, n] those of a'."""
    rows = np.arange(len(outputs))
    rewards, discounts = np.float64(batch.reward), np.float64(batch.discount)
    if target == "monte_carlo":
        rewards, discounts = np.float64(batch.return_to_go), 0 * discounts
    q_values = value(head, outputs)
    gap = logsumexp(q_values, axis=-1) - q_values[rows, batch.action]
    td = td_loss(head, outputs[rows, batch.action], next_outputs, rewards, discounts)
    return np.mean(batch.weight * (td + ALPHA * gap)), gap.mean()


CASES = [(head, "q_learning") for head in heads.BY_NAME]
CASES += [(head, target) for head in ("hlgauss", "c51", "quantile") for target in ("sarsa", "monte_carlo")]


@pytest.mark.parametrize(("head", "target"), CASES)
def test_loss_and_gradient_equal_the_equation_in_float64(head, target):
    agent = make(head, target=target, double=True)
    states = [agent.init(jax.random.key(seed)) for seed in (0, 1)]
    state = states[0]._replace(target_params=states[1].params)
    batch = recorded(CHAIN, [[0.5, 2.0], [1.0, 1.5]])

    @jax.jit
    def of_agent(params, state):
        goal, _ = agent.targets(state, batch)
        loss = lambda params: agent.loss(params, state.network_state, batch, goal)  # noqa: E731
        (loss, (_, _, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        outputs = [
            agent._apply(p, state.network_state, x, train=False)[0]
            for p, x in (
                (params, batch.observation),
                (params, batch.next_observation),
                (state.target_params, batch.next_observation),
            )
        ]
        return loss, metrics["cql_gap"], gradient["q_head"]["advantage"]["bias"], outputs

    loss, gap, gradient, outputs = of_agent(state.params, state)
    outputs, online_next, target_next = (np.float64(each) for each in outputs)
    best = value(head, online_next).argmax(-1)
    next_outputs = target_next[np.arange(8), batch.next_action if target == "sarsa" else best]
    of_bias = lambda bias: objective(head, outputs + bias, next_outputs, batch, target)  # noqa: E731
    np.testing.assert_allclose([loss, gap], of_bias(0), rtol=2e-5)
    steps = 1e-5 * np.eye(outputs[0].size).reshape(-1, *outputs.shape[1:])
    slopes = [(of_bias(step)[0] - of_bias(-step)[0]) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, slopes, atol=2e-5)


def test_with_alpha_zero_cql_is_dqn():
    backbone, head = functools.partial(networks.MLP, hidden=(8,)), heads.make("hlgauss", **HEADS["hlgauss"])
    batch, key = recorded(CHAIN), jax.random.key(0)
    cql, dqn = CQL(SPEC, backbone, head, alpha=0.0), DQN(SPEC, backbone, head)
    states = [jax.jit(agent.update)(agent.init(key), batch, key)[0] for agent in (cql, dqn)]
    chex.assert_trees_all_close(*(state.params for state in states), rtol=1e-6)


@pytest.mark.untyped
@pytest.mark.parametrize(("target", "field"), [("sarsa", "next_action"), ("monte_carlo", "return_to_go")])
def test_a_batch_without_the_field_that_a_target_needs_is_one_line(target, field):
    agent, batch = make("mse", target=target), recorded(CHAIN)._replace(**{field: None})
    state = jax.eval_shape(agent.init, jax.random.key(0))
    with pytest.raises(
        ValueError, match=f"^target={target} needs batches with {field}, but these have none: "
    ) as error:
        jax.eval_shape(agent.update, state, batch, jax.random.key(0))
    assert "\n" not in str(error.value)


@pytest.mark.untyped
def test_options_out_of_range_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^alpha must be at least 0, not -0.1$"):
        make("mse", alpha=-0.1)
    with pytest.raises(ValueError, match=r"^target must be one of q_learning, sarsa, monte_carlo, not max$"):
        make("mse", target="max")


def test_update_compiles_once_and_runs_under_vmap_over_seeds():
    agent, batch, key = make("hlgauss", target="sarsa"), recorded(CHAIN), jax.random.key(0)
    update = jax.jit(chex.assert_max_traces(agent.update, n=1))
    state = jax.jit(agent.init)(key)
    for _ in range(3):
        state, _ = update(state, batch, key)
    chex.clear_trace_counter()
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(key, 3))
    _, info = jax.jit(jax.vmap(agent.update, in_axes=(0, None, None)))(states, batch, key)
    assert info.metrics.keys() == {"loss", "cql_gap", "td_divergence", "q_mean", "clip_fraction"}
    assert len(set(np.asarray(info.metrics["cql_gap"]).tolist())) == 3
