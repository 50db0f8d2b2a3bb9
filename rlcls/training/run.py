"""A run from where it stands to its last step or a signal, and what is written down between two steps."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium.vector
import numpy as np
from omegaconf import DictConfig

from .checkpoint import Checkpoints
from .evaluation import evaluate
from .metrics import Metrics
from .player import Player
from .progress import Progress
from .trainer import Trainer

EVALUATIONS = 1.1  # what they and the checkpoints add to the time that the updates take, about
OWED = "owes_evaluation"  # counter of a checkpoint that a signal made during an evaluation


class _Stopped(Exception):
    """A signal came while an evaluation played."""


def run(
    config: DictConfig,
    trainer: Trainer,
    *,
    player: Player,
    arena: gymnasium.vector.VectorEnv,
    metrics: Metrics,
    checkpoints: Checkpoints,
    stopped: Callable[[], bool],
    owed: bool = False,
    seconds_per_update: float = 0.0,
) -> None:
    """Steps until `config.steps`, or until `stopped`, and saves then.

    Args:
      config: of the run.
      trainer: where it stands.
      player: plays its evaluations.
      arena: where they are played.
      metrics: where lines are written.
      checkpoints: where checkpoints are kept.
      stopped: whether a signal asks to end; looked at after every step, of evaluations too.
      owed: whether the evaluation of this moment was cut short before.
      seconds_per_update: measured beforehand, to tell the time left until the updates have a pace; 0: not known.

    Raises:
      Diverged: learning came to numbers that are not finite.
      UserError: something could not be written.
    """

    def due(every: int, before: int) -> bool:
        return trainer.agent_steps // every > before // every

    def save() -> None:
        tree, arrays, counters = trainer.get_state()
        counters = {"trainer": counters, "metrics": metrics.position(), OWED: owed}
        checkpoints.save(
            trainer.agent_steps, tree=tree, arrays=arrays, counters=counters, replay=trainer.replay
        )

    def score() -> bool:
        """Evaluates; False if a signal cut it short."""
        policy = player.policy(trainer.acting, trainer.steps)

        def act(observations: np.ndarray, step: int) -> np.ndarray:
            if stopped():
                raise _Stopped
            progress.update(trainer.agent_steps, **shown)
            return policy(observations, step)

        try:
            result = evaluate(
                act, arena, episodes=config.eval.episodes, seed=player.seed(trainer.steps)
            ).summary()
        except _Stopped:
            return False
        metrics.write("eval", **trainer.counts, **result)
        shown["evaluation_return"] = result["return_mean"]
        return True

    shown: dict[str, float | None] = {"training_return": None, "evaluation_return": None, "loss": None}
    frame_skip = getattr(arena, "frame_skip", None)
    with Progress(
        config.steps,
        start=trainer.agent_steps,
        steady_from=config.replay.min_size,
        expected_pace=EVALUATIONS * seconds_per_update / config.training.update_period,
        frame_skip=frame_skip,
    ) as progress:
        if owed:
            owed = not score()
            save()  # a finished run owes nothing more
        while trainer.agent_steps < config.steps and not stopped():
            before = trainer.agent_steps
            for episode in trainer.step():
                metrics.write("episode", **trainer.counts, **episode)
                shown["training_return"] = trainer.mean_return
            for values in trainer.diagnosed:
                metrics.write("diagnostics", **(trainer.counts | values))
            if due(config.logging.every, before):
                line = trainer.summary()
                metrics.write("train", **trainer.counts, **line)
                shown["loss"] = line.get("loss")
            last = trainer.agent_steps >= config.steps
            if due(config.eval.every, before) or last:
                owed = not score()
            if due(config.checkpoint.every, before) or last:
                save()
            progress.update(trainer.agent_steps, **shown)
        if stopped():
            print("saving; a second signal would stop without", flush=True)
            save()
