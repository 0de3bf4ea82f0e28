"""Scoring a large test: python benchmarks/recall.py → results/bench-recall.json

Random embeddings of the size of SpokenCOCO's test, 5,000 images and 25,031 captions, both directions; by
width, threads and the number of captions scored at a time. Each case in a process of its own: seconds, and
memory above what the libraries take.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from sgmim.core import code_version, run_record, write_json
from sgmim.evaluation.retrieval import retrieval_metrics


def one(width, threads, block, images, captions):
    torch.set_num_threads(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    g = torch.Generator().manual_seed(0)
    owner = torch.arange(captions) % images
    image = torch.randn(images, width, generator=g)
    audio = image[owner] + 4 * torch.randn(captions, width, generator=g)
    began = time.perf_counter()
    r = retrieval_metrics(image, audio, owner, block=block)
    return {
        "width": width,
        "threads": threads,
        "block": block,
        "seconds": time.perf_counter() - began,
        "bytes_above_libraries": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
        "recall_at_1": r.mean[0],
    }


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--images", type=int, default=5000)
p.add_argument("--captions", type=int, default=25_031)
p.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "bench-recall.json")
p.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
a = p.parse_args()
if a.one:
    print(json.dumps(one(*a.one, a.images, a.captions)))
else:
    code, began, found = code_version(), time.perf_counter(), []
    for case in ((768, 1, 1024), (768, 2, 1024), (2048, 1, 1024), (768, 1, 256), (768, 1, 8192)):
        done = subprocess.run(
            [
                sys.executable,
                __file__,
                "--one",
                *map(str, case),
                "--images",
                str(a.images),
                "--captions",
                str(a.captions),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    write_json(
        a.out,
        run_record(
            "benchmark",
            {"images": a.images, "captions": a.captions},
            0,
            "random embeddings",
            {"cases": found},
            time.perf_counter() - began,
            "cpu",
            code,
        ),
    )
