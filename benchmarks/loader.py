"""How fast pairs come: python benchmarks/loader.py → results/bench-loader.json

Photographs of 640 × 480 and recordings of about 5 s (see shards.py), as loose files and in shards; read
with the augmentation and the sizes of the paper's recipe, by 0, 1, … worker processes. And the share
of the time that a training step waits for the next batch, for steps of a given length.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from shards import write_loose

from sgmim.core import code_version, run_record, write_json
from sgmim.data.shards import open_shards, write_shards
from sgmim.models.sgmim import paper
from sgmim.train import TrainConfig
from sgmim.training.feed import Feed


def read(corpus, workers, batches, step=0.0):
    "(pairs a second, share of the time spent waiting) over `batches`, a step of `step` seconds between them."
    feed = Feed(corpus, TrainConfig(batch_size=32, epochs=100.0, max_seconds=8.0), workers, paper())
    it, waited = feed.from_step(0), 0.0
    for _ in range(2 * workers + 2):  # the workers are up, and as far ahead as they will be with such a step
        next(it)
        time.sleep(step)
    began = time.perf_counter()
    for _ in range(batches):
        at = time.perf_counter()
        next(it)
        waited += time.perf_counter() - at
        time.sleep(step)
    total = time.perf_counter() - began
    return 32 * batches / total, waited / total


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", type=int, default=300)
    p.add_argument("--captions", type=int, default=2)
    p.add_argument("--batches", type=int, default=20)
    p.add_argument("--workers", nargs="+", type=int, default=[0, 1, os.cpu_count()])
    p.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "bench-loader.json")
    a = p.parse_args()
    code, began, found = code_version(), time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as tmp:
        loose = write_loose(Path(tmp), a.images, a.captions)
        write_shards(loose, Path(tmp) / "shards", shard_mb=16, progress=False)
        for name, corpus in (("files", loose), ("shards", open_shards(Path(tmp) / "shards", "train"))):
            for w in a.workers:
                rate, _ = read(corpus, w, a.batches)
                step = 32 / rate * 1.5 if w else 0.0  # a device that takes half as long again as the decoding
                found[f"{name}, {w} workers"] = {
                    "pairs_per_second": rate,
                    **(
                        {"step_seconds": step, "share_waiting": read(corpus, w, a.batches, step)[1]}
                        if w
                        else {}
                    ),
                }
                print(name, w, found[f"{name}, {w} workers"], flush=True)
    write_json(
        a.out,
        run_record(
            "benchmark",
            {"images": a.images, "captions": a.captions, "batches": a.batches},
            0,
            "embedded scenes, enlarged, with grain and hiss",
            found,
            time.perf_counter() - began,
            "cpu",
            code,
        ),
    )
