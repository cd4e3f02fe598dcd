"""One of the processes of a training on several hosts.

Run as `python -m tests.experiments.two_hosts FOLDER MODE PORT COUNT INDEX`. Prints the losses of all steps as one
line of JSON.
"""

import dataclasses
import json
import sys
from pathlib import Path

from experiments.engine.config import DataConfig, ParallelConfig
from tests.experiments.killed_runs import CONFIG, train


def main(folder: Path, mode: str, port: str, count: int, index: int) -> None:
    parallel = ParallelConfig(mode, sync_batch_norm=True)
    if count > 1:
        parallel = dataclasses.replace(
            parallel, distributed=True, coordinator=f"localhost:{port}", num_processes=count, process_id=index
        )
    config = dataclasses.replace(
        CONFIG, output_dir=folder, data=DataConfig("digits"), parallel=parallel, epochs=4, log_every=1, shrink=False
    )
    result = train(config)
    print(json.dumps({"losses": [r["train/loss"] for r in result.history], "top1": result.evaluation.top1}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
