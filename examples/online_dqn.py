"""Training from Python: an environment, an agent, a replay, and a loop that the program advances.

    python examples/online_dqn.py

The environment is a probe MDP with known values, so the program can check the result.
"""

import functools

import numpy as np

from rlcls import heads, networks
from rlcls.agents import DQN
from rlcls.envs import probe
from rlcls.replay import FrameReplay
from rlcls.training import LinearDecay, Online


def main(steps: int = 400) -> float:
    """Trains for `steps` vector steps; returns the largest error of the values."""
    env = probe.make("probe/policy", num_envs=4)
    head = heads.HLGauss(heads.Support.uniform(-2, 2, 21, on="edges"))
    backbone = functools.partial(networks.MLP, hidden=(32,))
    agent = DQN(env.spec, backbone, head, learning_rate=1e-2, target_period=20)
    replay = FrameReplay.of(env, capacity=2000, min_size=100, gamma=0.5)
    loop = Online(agent, env, replay, batch_size=32, exploration=LinearDecay(epsilon_end=0.5), log_every=400)
    for _ in range(steps):
        for kind, values in loop.advance():
            if kind == "train":
                print(f"{loop.counts['agent_steps']:5} agent steps  loss {values['loss']:.3f}")
    values = np.asarray(agent.q_values(loop.acting(), env.probe.observations()))
    exact = env.probe.q_values(0.5)
    print("learnt", values.round(2).tolist(), "exact", exact.tolist())
    loop.close()
    return float(np.abs(values - exact).max())


if __name__ == "__main__":
    main()
