"""d3rlpy's DiscreteCQL on a recording of rlcls, with its settings for Atari: 200 quantiles, Nature, batch 32."""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path

MARK = "MEASURED "


def run(recording: Path, seconds: float) -> dict:
    import d3rlpy
    import numpy as np

    layout = json.loads((recording / "manifest.json").read_text())["layout"]
    rows = (recording / "actions.bin").stat().st_size // 4

    def column(name: str, dtype: type, *shape: int) -> np.ndarray:
        return np.fromfile(recording / f"{name}.bin", dtype).reshape(rows, *shape)

    frames = column("frames", np.uint8, 1, *layout["frame_shape"])  # one channel; the picker stacks
    terminals = column("terminals", np.bool_).astype(np.float32)
    dataset = d3rlpy.dataset.MDPDataset(
        observations=frames,
        actions=column("actions", np.int32, 1),
        rewards=column("rewards", np.float32, 1),
        terminals=terminals,
        transition_picker=d3rlpy.dataset.FrameStackTransitionPicker(n_frames=layout["stack"]),
    )
    algorithm = d3rlpy.algos.DiscreteCQLConfig(
        learning_rate=5e-5,
        optim_factory=d3rlpy.optimizers.AdamFactory(eps=1e-2 / 32),
        batch_size=32,
        alpha=4.0,
        q_func_factory=d3rlpy.models.q_functions.QRQFunctionFactory(n_quantiles=200),
        observation_scaler=d3rlpy.preprocessing.PixelObservationScaler(),
        target_update_interval=2000,
        reward_scaler=d3rlpy.preprocessing.ClipRewardScaler(-1.0, 1.0),
    ).create(device="cpu:0")
    algorithm.build_with_dataset(dataset)
    for _ in range(10):
        algorithm.update(dataset.sample_transition_batch(32))
    updates, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        algorithm.update(dataset.sample_transition_batch(32))
        updates += 1
    return {"updates": updates, "seconds": elapsed, "updates_per_second": updates / elapsed}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    try:
        line = run(arguments.recording, arguments.seconds)
        line["versions"] = {name: importlib.metadata.version(name) for name in ("d3rlpy", "torch")}
    except ImportError as error:
        line = {"missing": str(error)}
    print(MARK + json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
