"""What buckets of like lengths save: python benchmarks/bucket.py → results/bench-bucket.json

The small model on the embedded corpus, where what is heard does not depend on the padding: the steps of an
epoch without buckets and with them, in turn, some rounds. Reported: CPU-seconds of an epoch (the median),
the share of all samples that is padding.
"""

import argparse
import statistics
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from sgmim.core import code_version, run_record, set_seed, write_json
from sgmim.models.sgmim import SGMIM, scenes_tiny
from sgmim.scenes.corpus import load_scenes
from sgmim.train import recipe
from sgmim.training.feed import Feed
from sgmim.training.step import keep_memory, make_optimiser, train_step

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--images", type=int, default=500)
p.add_argument("--rounds", type=int, default=3)
p.add_argument(
    "--buckets", nargs="+", type=int, default=[0, 16], help="TrainConfig.bucket: batches in a pool; 0: none"
)
p.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "bench-bucket.json")
a = p.parse_args()
code, began, device, found = code_version(), time.perf_counter(), torch.device("cpu"), {}
torch.set_num_threads(1)
keep_memory()
set_seed(0)
data, model = load_scenes("dev", a.images, progress=False), SGMIM(scenes_tiny()).train()
for turn in range(a.rounds + 1):
    for bucket in a.buckets:
        config = replace(recipe("scenes-tiny"), bucket=bucket, curriculum=0.0)
        feed, optimiser = Feed(data, config, 0, model.config), make_optimiser(model, config)
        batches = list(islice(feed.from_step(0), feed.per_epoch))
        cpu = time.process_time()
        for step, batch in enumerate(batches):
            train_step(model, batch, optimiser, step, feed.steps, 0, config)
        cpu = time.process_time() - cpu
        padding = 1 - sum(b["audio_len"].sum().item() for b in batches) / sum(
            b["audio"].numel() for b in batches
        )
        print(turn, f"bucket {bucket}: {cpu:.2f} CPU-seconds, {padding:.1%} padding", flush=True)
        if turn:
            # the first round is a warm-up
            found.setdefault(bucket, []).append({"cpu_seconds": cpu, "padding": padding})
result = [
    {
        "bucket": b,
        "steps": feed.per_epoch,
        **{k: statistics.median(r[k] for r in rounds) for k in rounds[0]},
        "rounds": [r["cpu_seconds"] for r in rounds],
    }
    for b, rounds in found.items()
]
write_json(
    a.out,
    run_record(
        "benchmark",
        {"images": a.images, "rounds": a.rounds},
        0,
        feed.fingerprint,
        {"cases": result},
        time.perf_counter() - began,
        device,
        code,
    ),
)
