"""CleanRL's dqn_atari_jax.py on Pong, run from a checkout of CleanRL.

The script expects old versions of its libraries, so this driver restores the names that have changed since.
"""

import argparse
import os
import runpy
import sys
import tempfile

from _meter import Meter, measure


def run(meter: Meter, arguments: argparse.Namespace) -> None:
    if not arguments.cleanrl:
        raise ImportError(
            "no checkout given: git clone https://github.com/vwxyzjn/cleanrl, then --cleanrl PATH"
        )
    script = os.path.join(arguments.cleanrl, "cleanrl", "dqn_atari_jax.py")
    if not os.path.isfile(script):
        raise ImportError(f"{script} is not there")
    sys.path.insert(0, arguments.cleanrl)
    import ale_py
    import gymnasium
    from cleanrl_utils import buffers

    gymnasium.register_envs(ale_py)
    gymnasium.wrappers.GrayScaleObservation = gymnasium.wrappers.GrayscaleObservation
    gymnasium.wrappers.FrameStack = gymnasium.wrappers.FrameStackObservation
    gymnasium.vector.SyncVectorEnv = _vector_env(gymnasium.vector)
    add = buffers.ReplayBuffer.add

    def counting_add(self, obs, next_obs, action, reward, done, infos):
        meter.step()
        return add(self, obs, next_obs, action, reward, done, infos)

    buffers.ReplayBuffer.add = counting_add
    options = {
        "env-id": "PongNoFrameskip-v4",
        "total-timesteps": 10**8,
        "buffer-size": 50_000,
        "learning-starts": meter.fill,
        "train-frequency": 4,
        "batch-size": 32,
        "start-e": 0.01,  # the network chooses the action at every step, as later in training
        "end-e": 0.01,
    }
    sys.argv = [script, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    with tempfile.TemporaryDirectory() as folder:  # it writes its logs where it runs
        os.chdir(folder)
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            os.chdir("/")


def _vector_env(vector):
    """The vector environment of gymnasium 0.29: it resets in the same step and renames the last observation."""

    class SyncVectorEnv(vector.SyncVectorEnv):
        def __init__(self, env_fns):
            super().__init__(env_fns, autoreset_mode=vector.AutoresetMode.SAME_STEP)

        def step(self, actions):
            *step, infos = super().step(actions)
            infos.pop("final_info", None)  # the script would log it, but its form has changed
            if "final_obs" in infos:
                infos["final_observation"] = infos.pop("final_obs")
            return *step, infos

    return SyncVectorEnv


if __name__ == "__main__":
    measure(("jax", "flax", "gymnasium", "ale-py", "torch"), run, "--cleanrl")
