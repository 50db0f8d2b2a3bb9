"""The DQN of stable-baselines3 on Pong: Nature CNN, batch 32, one update every 4 steps."""

import argparse

from _meter import Finished, Meter, measure


def run(meter: Meter, arguments: argparse.Namespace) -> None:
    import ale_py
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)

    class Tick(BaseCallback):
        def _on_step(self) -> bool:
            try:
                meter.step()
            except Finished:
                return False  # ends the library's loop
            return True

    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=1, seed=0), n_stack=4)
    agent = DQN(
        "CnnPolicy",
        env,
        buffer_size=50_000,
        learning_starts=meter.fill,
        batch_size=32,
        train_freq=4,
        gradient_steps=1,
        target_update_interval=1000,
        learning_rate=1e-4,
        exploration_initial_eps=0.01,  # the network chooses the action at every step, as later in training
        exploration_final_eps=0.01,
        seed=0,
        device="cpu",
    )
    agent.learn(total_timesteps=10**8, callback=Tick(), log_interval=None)


if __name__ == "__main__":
    measure(("stable_baselines3", "torch", "gymnasium", "ale-py"), run)
