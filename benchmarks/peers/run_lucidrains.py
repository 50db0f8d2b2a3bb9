"""Updates/s of `q-transformer` (lucidrains): its head for several actions, and its loss, optimiser and target average.

The published network reads videos and texts. Here a linear layer of the state replaces this part, so the size is that
of `benchmarks/qtransformer_speed.py`: width 64, 2 layers, 4 heads of 16, 4 dimensions, batch 128.
"""

import argparse
import importlib.metadata
import json
import tempfile
import time

MARK = "MEASURED "
NUMBERS, WIDTH, DIMENSIONS, BATCH = 11, 64, 4, 128


def run(bins: int, rounds: int, calls: int) -> dict:
    import torch
    from q_transformer.q_learner import QLearner
    from q_transformer.q_robotic_transformer import QHeadMultipleActions

    torch.set_num_threads(1)

    class Network(torch.nn.Module):
        num_actions = DIMENSIONS

        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Linear(NUMBERS, WIDTH)
            self.head = QHeadMultipleActions(
                WIDTH,
                num_actions=DIMENSIONS,
                action_bins=bins,
                attn_depth=2,
                attn_dim_head=16,
                attn_heads=4,
                num_residual_streams=1,
            )

        def forward(self, states, text_embeds=None, actions=None):
            return self.head(self.encoder(states.flatten(1))[:, None], actions)

    network = Network()
    with tempfile.TemporaryDirectory() as folder:
        learner = QLearner(
            network,
            dataset=torch.utils.data.TensorDataset(torch.zeros(BATCH, 1)),
            batch_size=BATCH,
            num_train_steps=1,
            learning_rate=1e-3,
            q_target_ema_kwargs={"beta": 0.99, "update_after_step": 0, "update_every": 1},
            checkpoint_folder=folder,
            accelerator_kwargs={"cpu": True},
        )
    shape = (BATCH, NUMBERS, 1, 1, 1)  # it reads channels, frames, height and width
    batch = (
        torch.zeros(BATCH, 1, 1),
        torch.randn(shape),
        torch.randint(0, bins, (BATCH, DIMENSIONS)),
        torch.randn(shape),
        torch.zeros(BATCH, 1),
        torch.zeros(BATCH),
        torch.zeros(BATCH, dtype=torch.bool),
    )

    def update() -> None:
        """One pass of the loop in `QLearner.forward`, without its data loader and its checkpoints."""
        learner.optimizer.zero_grad()
        loss, _ = learner.learn(*batch, min_reward=0.0)
        learner.accelerator.backward(loss)
        learner.accelerator.clip_grad_norm_(learner.model.parameters(), 0.5)
        learner.optimizer.step()
        learner.ema_model.update()

    for _ in range(5):
        update()
    rates: dict[str, list[float]] = {"wall": [], "cpu": []}
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            update()
        rates["wall"].append(calls / (time.perf_counter() - wall))
        rates["cpu"].append(calls / (time.process_time() - cpu))
    return {"rates": rates, "parameters": sum(each.numel() for each in network.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bins", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--calls", type=int, default=20)
    arguments = parser.parse_args()
    line = run(arguments.bins, arguments.rounds, arguments.calls)
    line["versions"] = {name: importlib.metadata.version(name) for name in ("q-transformer", "torch")}
    print(MARK + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
