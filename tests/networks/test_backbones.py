"""Every backbone can be chosen by name, refuses unsuitable observations in one line, and learns a probe from pixels."""

import functools

import chex
import jax
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.agents import DQN
from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.cli.help import choices
from rlcls.envs.probe import Probe
from rlcls.transition import Transition

PIXELS = ["env=probe", "game=probe/policy", "+env.pixels=true"]
# Options that make each backbone fast on a CPU. The backbones for chess take pixels if they have no vocabulary.
SMALL = {
    "nature": [],
    "data_efficient": [],
    "impala": [],
    "soft_moe": ["backbone.hidden=64"],
    "per_token": ["backbone.hidden=64"],
    "average_pooling": [],
    "wide_dense": ["backbone.hidden=64"],
    "resnet18": ["backbone.width=8"],
    "resnet34": ["backbone.width=8"],
    "resnet50": ["backbone.width=8"],
    "resnet101": ["backbone.width=8"],
    "transformer": ["backbone.width=32", "backbone.layers=2", "backbone.patch=28"],
    "transformer_9m": ["backbone.width=32", "backbone.layers=1", "backbone.vocabulary=null"],
    "transformer_136m": ["backbone.width=32", "backbone.layers=1", "backbone.vocabulary=null"],
    "transformer_270m": ["backbone.width=32", "backbone.layers=1", "backbone.vocabulary=null"],
}


def agent(*overrides: str) -> DQN:
    config = compose([*PIXELS, *overrides])
    return build.agent(config, build.environment(config).spec)


def test_every_backbone_for_pixels_is_tested():
    assert sorted([*SMALL, "minatar", "mlp", "states"]) == sorted(choices("backbone"))


@pytest.mark.parametrize("backbone", SMALL)
def test_every_backbone_takes_pixels(backbone):
    agent(f"backbone={backbone}", *SMALL[backbone])


@pytest.mark.parametrize("loss", choices("loss"))
def test_a_backbone_works_with_every_loss(loss):
    agent("backbone=soft_moe", f"loss={loss}", "agent.double=true", "agent.dueling=true")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*PIXELS, "backbone=mlp"],
            "agent: MLP takes vectors, not uint8 images of shape (4, 84, 84); the other "
            "backbones take images",
        ),
        (
            ["env=probe", "game=probe/policy", "backbone=resnet18"],
            "backbone: ResNet takes observations of shape (frames, height, width), at least 1 high and "
            "wide, not (1,); backbone=mlp or backbone=states takes vectors",
        ),
        (
            ["env=probe", "game=probe/policy", "backbone=soft_moe"],
            "backbone: IMPALATokens takes observations of shape (frames, height, width), at least 1 high and "
            "wide, not (1,); backbone=mlp or backbone=states takes vectors",
        ),
        (
            ["env=probe", "game=probe/policy", "backbone=transformer"],
            "backbone: Transformer takes observations of shape (tokens,) with a vocabulary, (tokens, features) or "
            "(frames, height, width), not (1,) without a vocabulary",
        ),
        (
            ["env=probe", "game=probe/policy", "backbone=transformer", "backbone.vocabulary=9"],
            "agent: tokens must be integers, not float32",
        ),
        (
            [*PIXELS, "backbone=transformer_9m"],
            "backbone: a vocabulary (1968) needs observations of shape (tokens,), not (4, 84, 84)",
        ),
        (
            [*PIXELS, "backbone=transformer", "backbone.patch=13"],
            "backbone: Transformer cuts frames into patches of 13 x 13, which does not divide (4, 84, 84)",
        ),
        (
            [*PIXELS, "backbone=transformer", "backbone.pool=none"],
            "agent: a Q-network needs one vector of features, but Transformer returns one for every token: pool them",
        ),
        (
            [*PIXELS, "backbone=resnet18", "backbone.dtype=half"],
            "backbone: dtype must be float32 or bfloat16, not 'half'",
        ),
    ],
)
@pytest.mark.untyped
def test_a_wrong_combination_is_one_line_before_anything_runs(overrides, message):
    config = compose(overrides)
    with pytest.raises(UserError) as raised:
        build.agent(config, build.environment(config).spec)
    assert str(raised.value) == message


LEARNERS = {
    "nature": [],
    "data_efficient": [],
    "impala": [],
    "soft_moe": ["backbone.hidden=64"],
    "per_token": ["backbone.hidden=64"],
    "average_pooling": [],
    "wide_dense": ["backbone.hidden=64"],
    "resnet18": ["backbone.width=4"],
    "transformer": SMALL["transformer"],
    "transformer sigma": [*SMALL["transformer"], "backbone.sigma_reparam=true", "backbone.layer_norm=false"],
}
GAMMA = 0.5
# Action 1 is worse in both states, so a wrong maximum or a swapped action gives wrong values. The images of the states
# differ by more than brightness, which group norm would remove.
PROBE = Probe(
    "two steps and two actions",
    features=(-1.0, 1.0),
    rewards=((0.0, -0.5), (1.0, -1.0)),
    successors=(1, None),
    starts=(0,),
    closed_form=lambda gamma: [[gamma, gamma - 0.5], [1.0, -1.0]],
)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_dqn_learns_a_probe_through_pixels(name):
    support = ["loss.vmin=-2", "loss.vmax=2", "loss.num_bins=21"]
    fast = ["agent.learning_rate=1e-3", "agent.target_period=10", "agent.target_tau=1"]
    learner = agent(f"backbone={name.split()[0]}", *LEARNERS[name], *support, *fast)
    observations, exact = PROBE.observations(pixels=True), PROBE.q_values(GAMMA)
    batch = Transition(
        observation=observations[[0, 0, 1, 1]],
        action=np.array([0, 1, 0, 1], np.int32),
        reward=np.array(PROBE.rewards, np.float32).ravel(),
        discount=np.array([GAMMA, GAMMA, 0, 0], np.float32),
        next_observation=observations[[1, 1, 1, 1]],
        weight=np.ones(4, np.float32),
    )
    key = jax.random.key(0)
    quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    state, update, values = quick(learner.init)(key), quick(learner.update), quick(learner.q_values)
    start = state.network_state
    for _ in range(24):
        for _ in range(25):
            state, _ = update(state, batch, key)
        found = values(state.online, observations)
        if np.abs(found - exact).max() < 0.05:
            break
    np.testing.assert_allclose(found, exact, atol=0.05)
    # Training changes the vectors of the power iterations.
    for before, after in zip(*map(jax.tree.leaves, (start, state.network_state)), strict=True):
        assert not np.array_equal(before, after)
    chex.assert_trees_all_equal_shapes(state.target_network_state, state.network_state)
