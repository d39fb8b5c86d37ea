"""Stands for `narrows train` in tests: meets the other processes, and keeps what it was given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def main() -> None:
    """Sum the ranks of all processes and write that, the arguments and the environment."""
    run = Path(sys.argv[sys.argv.index("--run") + 1])
    dist.init_process_group("gloo")
    total = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(total)
    run.mkdir(parents=True, exist_ok=True)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    kept = {name: os.environ[name] for name in names}
    kept |= {"arguments": sys.argv[1:], "total": total.item()}
    file = run / f"rank-{kept['RANK']}.json"
    again = file.exists()
    file.write_text(json.dumps(kept))
    dist.barrier()
    dist.destroy_process_group()
    if os.environ.get("FAIL_ONCE") and not again:
        (run / "plan.toml").touch()
        sys.exit(1)


if __name__ == "__main__":
    main()
