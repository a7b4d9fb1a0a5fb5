"""Run as a program: merges a small mixture and then a large one under a limit, and writes how far memory rose over the first to a file.

Arguments: the small mixture, the large one, preferences (or an empty text), the method, the limit in bytes above what the process has
after the first merge, a folder for results. With the method `twice` a full state dict is loaded beside a full model instead.
"""

import json
import os
import resource
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from safetensors.torch import load_file

from rewardproof.models.checkpoints import EXPERTS_FILE, load_reward_model
from rewardproof.stages.merge import MergeModels, run


def status(name: str) -> int:
    """An entry of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def merge(mixture: str, data: str, method: str, out: Path) -> None:
    """One merge; its files land in `out`."""
    if method == "twice":
        model, _ = load_reward_model(mixture)
        model.load_state_dict(load_file(Path(mixture) / EXPERTS_FILE))
        return
    settings = {"models": (mixture,), "data": (data,) if data else (), "method": method, "steps": 2, "held_out": 0.3}
    compute = {"precision": "fp32", "tokens_per_batch": 512}  # few tokens: it is the weights' memory that is measured
    run(MergeModels(**settings, compute=compute), out)  # pyright: ignore[reportArgumentType]


def main(small: str, large: str, data: str, method: str, limit: str, folder: str) -> None:
    """Measure; a limit that is exceeded ends the program with an error."""
    torch.set_num_threads(1)
    merge(small, data, method, Path(folder) / "small")
    before = status("VmHWM")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + int(limit), hard))
    merge(large, data, method, Path(folder) / "large")
    (Path(folder) / "grown.json").write_text(json.dumps(status("VmHWM") - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
