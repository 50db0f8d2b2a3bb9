"""Q-Transformer (Chebotar et al. 2023) with any value head, and behavioural cloning with the same network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int, Num, PyTree, Shaped

from rlcls import heads, networks
from rlcls._errors import check_choice
from rlcls.heads import MSE
from rlcls.spec import Spec
from rlcls.transition import Transition

from .action_bins import ActionBins
from .bc import Cloning
from .q_learning import ADAM, AgentState, Network, Optimizer, QLearning

_CONSERVATISM = ("unseen", "softmax")
# The metric q_unseen averages over this many transitions at the start of the batch (of each device's part of it),
# because decoding the values of all bins of all transitions would be a large part of an update.
_METRIC_ROWS = 8


class QTransformer(QLearning):
    """Q-learning over the tokens of an action, one at a time: `rlcls.agents.base.Agent`.

    An action is T tokens, a_1 to a_T, each with K values, and Q_i is the value of token i given those before it:

        y_i = max_b Q_target(s, a_1, ..., a_i, b)                  for i < T
        y_T = r + discount * max_b Q_target(s', b)
        loss = mean over transitions and tokens of
          w * (head.loss(Q_i(a_i), y_i) + alpha * sum_{b != a_i} head.loss(Q_i(b), minimum_return))

    With `monte_carlo` each y_i is at least the recorded return from s on. The second term pulls the values of all
    tokens that are not in the data to the lowest return. If a_i has the share p among the recorded tokens, both a
    squared error and a cross-entropy have the fixed point

        Q_i(a_i) = p * y_i / (p + alpha * (1 - p))                 with minimum_return 0

    It does not depend on K, because alpha is the weight of *one* unseen value. Values are therefore not expected
    returns; only their order has a meaning. With conservatism="softmax" the second term is
    alpha * (log sum_b exp Q_i(b) - Q_i(a_i)). The target of every head is a scalar, which C51 learns as the
    distribution of a single point.

    Args:
      spec: the observations are one array, or frames and game with `games`. The actions are tokens (int32 [T]), or
        continuous (float32 [D], with a finite range) and divided into bins.
      make_backbone: as in `QLearning`. If the backbone gives features for each token of the observation (`pool=none` of
        a transformer), each becomes a token. A history of pictures [W, C, height, width] is read one picture at a time.
      head: represents values. Its support should reach beyond the returns on both sides, because HL-Gauss cannot decode
        values near the ends.
      bins: K for continuous actions, the number of bins.
      levels: the number of levels of bins within bins; see `ActionBins`.
      alpha: weight of one unseen value, or of the softmax term.
      conservatism: "unseen" or "softmax".
      minimum_return: the lowest return.
      monte_carlo: whether the recorded return bounds the targets from below; batches then need `return_to_go`.
      layers, width, heads, sigma_reparam: options of the transformer; see `rlcls.networks.TokenQNetwork`.
      games: the number of games (or tasks) that share the network. Observations are then {"frames": [B, ...], "game":
        int32 [B]}, and FiLM scales and shifts the features by a vector of the game.
      embeddings: [games, E], the vector of each game, such as the embedding of a sentence; None for one-hot vectors.
      learning_rate, schedule, optimizer, max_gradient_norm, target_period, target_tau, double: as in `QLearning`.

    Raises:
      ValueError: an option is out of range, `minimum_return` lies outside the head's support, or spec, backbone and
        head do not fit together.

    Source: Chebotar et al. 2023, equations 1 and 2 and section 4.2.
    """

    def __init__(
        self,
        spec: Spec,
        make_backbone: Callable[..., nnx.Module],
        head: heads.Head,
        *,
        bins: int = 256,
        levels: int = 1,
        alpha: float = 1.0,
        conservatism: str = "unseen",
        minimum_return: float = 0.0,
        monte_carlo: bool = True,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        sigma_reparam: bool = False,
        games: int = 0,
        embeddings: ArrayLike | None = None,
        learning_rate: float = 6.25e-5,
        schedule: optax.Schedule | None = None,
        optimizer: Optimizer = ADAM,
        max_gradient_norm: float = 0.0,
        target_period: int = 2000,
        target_tau: float = 1.0,
        double: bool = False,
    ):
        if alpha < 0:
            raise ValueError(f"alpha must be at least 0, not {alpha}")
        check_choice("conservatism", conservatism, _CONSERVATISM)
        reads_minimum = alpha > 0 and conservatism == "unseen"
        with jax.transfer_guard("allow"):
            is_outside = reads_minimum and bool(head.clip_fraction(np.full(1, minimum_return, np.float32)))
        if is_outside:
            raise ValueError(
                f"minimum_return ({minimum_return:g}) lies outside the support of {type(head).__name__}; returns.low "
                "and returns.high must enclose it"
            )
        self._alpha, self._conservatism = alpha, conservatism
        self._minimum_return, self._monte_carlo = minimum_return, monte_carlo
        self._bins = _bins_of(spec, bins, levels)
        self._vectors = _vectors_of(games, embeddings)
        self._transformer: dict[str, Any] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "sigma_reparam": sigma_reparam,
        }
        super().__init__(
            spec,
            make_backbone,
            head,
            learning_rate=learning_rate,
            schedule=schedule,
            optimizer=optimizer,
            max_gradient_norm=max_gradient_norm,
            target_period=target_period,
            target_tau=target_tau,
            double=double,
            games=games,
        )

    def q_values(
        self, acting: Network, observations: PyTree[Num[ArrayLike, "b ..."]]
    ) -> Float[Array, "b t a"]:
        """The value of each choice for each token, given the best choices for the tokens before it."""
        return self._decode(acting, observations, jnp.full((1, 1), -1))[1]

    def act(
        self, acting: Network, observations: PyTree[Num[ArrayLike, "b ..."]], key: Array, epsilon: ArrayLike
    ) -> Shaped[Array, "b d"]:
        """Epsilon-greedy actions. The greedy action takes the best choice token by token.

        Args:
          acting: from `acting`.
          observations: [B, *observation].
          key: determines the random numbers of this step.
          epsilon: [], the probability of a uniformly random action.

        Returns:
          int32 [B, T] if the actions of the spec are tokens, otherwise float32 [B, D], the centres of bins.
        """
        batch = len(jax.tree.leaves(observations)[0])
        explore_key, action_key = jax.random.split(key)
        explore = jax.random.uniform(explore_key, (batch, 1)) < epsilon
        random = jax.random.randint(action_key, (batch, self._num_tokens), 0, self._num_actions)
        tokens, _ = self._decode(acting, observations, jnp.where(explore, random, -1))
        return tokens if self._bins is None else self._bins.decode(tokens)

    def loss(
        self, params: PyTree, network_state: PyTree, batch: Transition, target: PyTree
    ) -> tuple[Float[Array, ""], tuple[PyTree, Array, dict[str, Array]]]:
        tokens = self._actions(batch)
        each, network_state, _ = self._apply(
            params, network_state, *self._inputs(batch), train=True, method="each"
        )
        chosen = jnp.stack([_select(outputs, tokens[:, i]) for i, outputs in enumerate(each)], axis=1)
        unseen = jnp.arange(self._num_actions) != tokens[..., None]
        pull = jnp.stack([self._pull(outputs, unseen[:, i]) for i, outputs in enumerate(each)], axis=1)
        if self._conservatism == "softmax":
            pull = pull - self.head.value(chosen)
        weight = jnp.asarray(batch.weight)[:, None]
        loss = jnp.mean(weight * (self.head.loss(chosen, target) + self._alpha * pull))
        values = self.head.value(jnp.stack([outputs[:_METRIC_ROWS] for outputs in each], axis=1))
        mean_unseen = jnp.mean(values, where=unseen[:_METRIC_ROWS])
        return loss, (network_state, chosen, {"conservatism": jnp.mean(pull), "q_unseen": mean_unseen})

    def _pull(self, outputs: Float[Array, "b a n"], unseen: Bool[Array, "b a"]) -> Float[Array, "b"]:
        """The summed losses of one token's unseen values; with conservatism="softmax" the log-sum-exp of all values."""
        if self._conservatism == "softmax":
            return jax.nn.logsumexp(self.head.value(outputs), axis=-1)
        # All outputs have the same target, so under vmap its histogram is computed once. Reshaping the outputs to rows
        # instead would make XLA divide indices to find each row's bias.
        loss = jax.vmap(jax.vmap(self.head.loss, (0, None)), (0, None))
        losses = loss(outputs, jnp.float32(self._minimum_return))
        return jnp.sum(jnp.where(unseen, losses, 0.0), axis=-1)

    def targets(
        self, state: AgentState, batch: Transition
    ) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
        """The target of each token, twice, because the target of every head is the scalar itself."""

        def values(network: Network) -> list[Float[Array, "b a"]]:
            """Values of tokens 2 to T after the recorded tokens before them, and of token 1 at the next observation."""
            each, _, _ = self._apply(*network, *self._inputs(batch), train=False, method="each")
            first, _, _ = self._apply(*network, batch.next_observation, train=False, method="first")
            return [self.head.value(outputs) for outputs in (*each[1:], first)]

        evaluated = values(state.target)
        choosing = values(state.online) if self._double else evaluated
        *best, best_first = map(_value_of_best, evaluated, choosing)
        last = jnp.asarray(batch.reward + batch.discount * best_first)
        target = jnp.stack([*best, last], axis=1)
        if self._monte_carlo:
            if batch.return_to_go is None:
                raise ValueError(
                    "monte_carlo=true needs batches with return_to_go, and these have none: take a data set that "
                    "records it, or monte_carlo=false"
                )
            target = jnp.maximum(target, jnp.asarray(batch.return_to_go)[:, None])
        target = jax.lax.stop_gradient(target)
        return target, target

    def _divergence(self, chosen: Float[Array, "b t n"], target: Float[Array, "b t"]) -> Float[Array, "b"]:
        return jnp.mean(self.head.divergence(chosen, target), axis=-1)

    # The diagnoses of `QLearning` assume one value for each action.
    diagnose = None  # type: ignore[assignment]

    def _decode(
        self, acting: Network, observations: PyTree, forced: Int[Array, "#b #t"]
    ) -> tuple[Int[Array, "b t"], Float[Array, "b t a"]]:
        batch = len(jax.tree.leaves(observations)[0])
        forced = jnp.broadcast_to(forced, (batch, self._num_tokens))
        decoded, _, _ = self._apply(*acting, observations, forced, train=False, method="decode")
        return decoded

    def _actions(self, batch: Transition) -> Int[Array, "b t"]:
        return jnp.asarray(batch.action) if self._bins is None else self._bins.encode(batch.action)

    def _inputs(self, batch: Transition) -> tuple[PyTree, ...]:
        return batch.observation, self._actions(batch)

    @property
    def _num_tokens(self) -> int:
        return self.spec.action.shape[0] if self._bins is None else self._bins.num_tokens

    def _check(self, spec: Spec) -> int:
        name, seen = type(self).__name__, spec.observation
        several_games = isinstance(seen, dict) and seen.keys() == {"frames", "game"}
        if self._games and not several_games:
            raise ValueError(
                f"games={self._games} needs observations of frames and game; data.games mixes them"
            )
        if several_games and not self._games:
            raise ValueError(f"{name} needs the number of games, games=, for observations of frames and game")
        if not several_games and not isinstance(seen, jax.ShapeDtypeStruct):
            raise ValueError(f"{name} needs observations that are one array, and these are a tree")
        return self._bins.bins if self._bins is not None else spec.num_actions or 0

    def _make_network(self, rngs: nnx.Rngs) -> Any:
        seen = self.spec.observation
        shape = (seen["frames"] if self._games else seen).shape
        # `networks.States` reads a history of numbers itself.
        history = shape[0] if len(shape) == 4 else 0
        backbone = self._make_backbone(shape[1:] if history else shape, rngs=rngs)
        return networks.TokenQNetwork(
            backbone,
            self.head,
            self._num_tokens,
            self._num_actions,
            **self._transformer,
            vectors=self._vectors if self._games else None,
            history=history,
            rngs=rngs,
        )


class QTransformerBC(Cloning, QTransformer):
    """Behavioural cloning token by token, with the network of `QTransformer`.

    loss = mean over transitions and tokens of w * -log softmax(logits(s, a_1, ..., a_{i-1}))[a_i]. The most frequent
    value of each token is played.

    Args:
      spec, make_backbone: as in `QTransformer`.
      head: unused, because the network gives logits.
      bins, levels, layers, width, heads, sigma_reparam, games, embeddings: as in `QTransformer`.
      learning_rate, schedule, optimizer, max_gradient_norm, target_period, target_tau: as in `QLearning`.

    Raises:
      ValueError: as in `QTransformer`.
    """

    def __init__(
        self,
        spec: Spec,
        make_backbone: Callable[..., nnx.Module],
        head: heads.Head,
        *,
        bins: int = 256,
        levels: int = 1,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        sigma_reparam: bool = False,
        games: int = 0,
        embeddings: ArrayLike | None = None,
        learning_rate: float = 6.25e-5,
        schedule: optax.Schedule | None = None,
        optimizer: Optimizer = ADAM,
        max_gradient_norm: float = 0.0,
        target_period: int = 2000,
        target_tau: float = 1.0,
    ):
        super().__init__(
            spec,
            make_backbone,
            MSE(),  # a head with one output for each choice of a token, which is the logit here
            bins=bins,
            levels=levels,
            layers=layers,
            width=width,
            heads=heads,
            sigma_reparam=sigma_reparam,
            games=games,
            embeddings=embeddings,
            learning_rate=learning_rate,
            schedule=schedule,
            optimizer=optimizer,
            max_gradient_norm=max_gradient_norm,
            target_period=target_period,
            target_tau=target_tau,
        )


@jax.custom_vjp
def _select(outputs: Float[Array, "b a n"], tokens: Int[Array, "b"]) -> Float[Array, "b n"]:
    """`heads.select`, with a gradient that XLA adds to that of the other outputs in one pass instead of three."""
    return heads.select(outputs, tokens)


def _select_forward(outputs: Array, tokens: Array) -> tuple[Array, tuple[Array, int]]:
    return _select(outputs, tokens), (tokens, outputs.shape[-2])


def _select_backward(saved: tuple[Array, int], gradient: Array) -> tuple[Array, None]:
    tokens, count = saved
    is_taken = jnp.arange(count) == tokens[..., None]
    return jnp.where(is_taken[..., None], gradient[..., None, :], 0.0), None


_select.defvjp(_select_forward, _select_backward)


def _value_of_best(values: Float[Array, "*b a"], chooser: Float[Array, "*b a"]) -> Float[Array, "*b"]:
    """The entry of `values` at the largest entry of `chooser`."""
    best = jnp.argmax(chooser, axis=-1, keepdims=True)
    return jnp.take_along_axis(values, best, axis=-1)[..., 0]


def _vectors_of(games: int, embeddings: ArrayLike | None) -> Float32[np.ndarray, "games e"]:
    """The vector of each game.

    Raises:
      ValueError: the embeddings are not one finite vector for each game.
    """
    if embeddings is None:
        return np.eye(max(games, 0), dtype=np.float32)
    vectors = np.asarray(embeddings, np.float32)
    if vectors.ndim != 2 or len(vectors) != games or not vectors.size or not np.isfinite(vectors).all():
        raise ValueError(
            f"embeddings must be finite numbers of shape [games, size] with games={games}, not {list(vectors.shape)}"
        )
    return vectors


def _bins_of(spec: Spec, bins: int, levels: int) -> ActionBins | None:
    """The bins that turn continuous actions into tokens; None if the actions are tokens.

    Raises:
      ValueError: the actions are neither continuous nor several tokens.
    """
    if spec.action_range is not None:
        low, high = (tuple(float(number) for number in bound) for bound in spec.action_range)
        return ActionBins(low, high, bins, levels)
    if len(spec.action.shape) != 1:
        action = f"{spec.action.dtype} {list(spec.action.shape)}"
        raise ValueError(
            f"QTransformer needs actions of several tokens or continuous ones, and these are {action}"
        )
    return None
