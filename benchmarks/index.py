"""Indexing and searching: python benchmarks/index.py → results/bench-index.json

Three parts, of which `--parts` chooses. build: `--images` small JPEGs are written to a temporary folder,
and indexed with the shipped model; then once more, when nothing has changed, and after one in a hundred
has. exact: exact search among random vectors of width 128, by their number; cold is the first search after
opening. approximate: FAISS against exact, time and recall at 10, where the vectors are random and where
they lie in clusters.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sgmim.apps.search import (
    _FORMAT,
    _PART,
    _VERSION,
    EmbedOptions,
    File,
    Index,
    _write_part,
    build_approximate,
    open_approximate,
    search_approximate,
    update_index,
)
from sgmim.core import code_version, run_record, write_json
from sgmim.models.pretrained import shipped
from sgmim.models.sgmim import load_model

WIDTH = 128


def seconds(function, *args, repeat=1):
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        result = function(*args)
        times.append(time.perf_counter() - began)
    return float(np.median(times)), result


def pictures(folder, n, side=128, seed=0):
    "`n` JPEGs of some 3 kB: smooth noise, no two alike."
    rng = np.random.default_rng(seed)
    for i in range(n):
        path = folder / f"{i // 1000:04d}" / f"{i:07d}.jpg"
        if i % 1000 == 0:
            path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            (side * 4 // 3, side), Image.BILINEAR
        ).save(path, quality=80)


def build(images, threads, workers, tmp):
    torch.set_num_threads(threads)
    model = load_model(shipped("scenes-tiny"), device="cpu")
    made, _ = seconds(pictures, tmp / "photos", images)
    cpu = time.process_time()
    first, done = seconds(
        lambda: update_index(
            tmp / "index",
            tmp / "photos",
            model,
            checkpoint=shipped("scenes-tiny"),
            options=EmbedOptions(workers=workers),
        )
    )
    cpu = time.process_time() - cpu
    again, _ = seconds(
        lambda: update_index(
            tmp / "index", tmp / "photos", model, options=EmbedOptions(workers=workers), progress=False
        )
    )
    for p in sorted((tmp / "photos").rglob("*.jpg"))[::100]:
        os.utime(p)
    some, changed = seconds(
        lambda: update_index(
            tmp / "index", tmp / "photos", model, options=EmbedOptions(workers=workers), progress=False
        )
    )
    opened, index = seconds(Index.open, tmp / "index")
    return {
        "images": images,
        "threads": threads,
        "workers": workers,
        "seconds_to_write_the_files": made,
        "seconds": first,
        "images_a_second": done.added / first,
        "cpu_seconds": cpu,
        "seconds_nothing_changed": again,
        "changed": changed.changed,
        "seconds_changed": some,
        "seconds_to_open": opened,
        "bytes": sum(p.stat().st_size for p in (tmp / "index").iterdir()),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def vectors(n, clusters, seed=0):
    "(n, 128) of length 1: random directions, or around `clusters` centres."
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, WIDTH)).astype(np.float32) if clusters else None
    for a in range(0, n, _PART):
        z = rng.normal(size=(min(_PART, n - a), WIDTH)).astype(np.float32)
        if clusters:
            z = centres[rng.integers(0, clusters, len(z))] + 0.5 * z
        yield z / np.linalg.norm(z, axis=1, keepdims=True)


def make(folder, n, clusters=0):
    folder.mkdir()
    parts, row = [], 0
    for z in vectors(n, clusters):
        parts.append(
            _write_part(
                folder,
                z,
                [
                    File(f"{r // 1000:04d}/{r:07d}.jpg", 10_000 + r, 1_700_000_000_000_000_000 + r)
                    for r in range(row, row + len(z))
                ],
            )
        )
        row += len(z)
    write_json(
        folder / "index.json",
        {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": "images",
            "root": "/photos",
            "checkpoint": "none",
            "model": "none",
            "similarity": "cosine",
            "width": WIDTH,
            "max_seconds": 10.0,
            "parts": parts,
            "left_out": [],
            "left_out_count": 0,
        },
    )


def queries(folder, n=20):
    "Queries near rows of the index, as a caption is near its picture."
    rng, index = np.random.default_rng(1), Index.open(folder, verify=False)
    z = np.stack([index.parts[rng.integers(len(index.parts))][rng.integers(1000)] for _ in range(n)])
    q = z + 0.05 * rng.normal(size=z.shape)
    return (q / np.linalg.norm(q, axis=1, keepdims=True)).astype(np.float32)


def exact(n, threads, tmp):
    torch.set_num_threads(threads)
    make(tmp / "index", n)
    q = queries(tmp / "index")
    opened, index = seconds(Index.open, tmp / "index")
    cold, _ = seconds(index.search, q[0])
    warm = [seconds(index.search, v)[0] for v in q]
    return {
        "vectors": n,
        "width": WIDTH,
        "threads": threads,
        "seconds_to_open_and_verify": opened,
        "seconds_to_open": seconds(lambda: Index.open(tmp / "index", verify=False))[0],
        "seconds_first": cold,
        "seconds": float(np.median(warm)),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def approximate(n, clusters, threads, tmp):
    import faiss

    faiss.omp_set_num_threads(threads)
    make(tmp / "index", n, clusters)
    q, index = queries(tmp / "index"), Index.open(tmp / "index")
    right = [{h.row for h in index.search(v)} for v in q]
    slow = float(np.median([seconds(index.search, v)[0] for v in q]))
    built, path = seconds(build_approximate, index)
    opened, grouped = seconds(open_approximate, index)
    found = {}
    for probes in (1, 4, 16, 64):
        runs = [seconds(search_approximate, index, grouped, v, 10, probes) for v in q]
        found[probes] = {
            "seconds": float(np.median([s for s, _ in runs])),
            "recall_at_10": float(
                np.mean(
                    [len(r & {h.row for h in hits}) / 10 for r, (_, hits) in zip(right, runs, strict=True)]
                )
            ),
        }
    return {
        "vectors": n,
        "clusters": clusters,
        "threads": threads,
        "lists": grouped.nlist,
        "seconds_to_group": built,
        "bytes": path.stat().st_size,
        "seconds_to_open": opened,
        "seconds_exact": slow,
        "probes": found,
        "faiss": faiss.__version__,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument(
    "--parts", nargs="+", choices=("build", "exact", "approximate"), default=("build", "exact", "approximate")
)
p.add_argument("--images", type=int, default=100_000, help="of build (default %(default)s)")
p.add_argument(
    "--vectors",
    type=int,
    nargs="+",
    default=(100_000, 1_000_000),
    help="of exact; the last of approximate too (default %(default)s)",
)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--workers", type=int, default=2, help="threads that open files")
p.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "bench-index.json")
p.add_argument("--one", help=argparse.SUPPRESS)
a = p.parse_args()
if a.one:
    tmp = Path(tempfile.mkdtemp())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = globals()[json.loads(a.one)[0]](*json.loads(a.one)[1:], tmp)
    finally:
        shutil.rmtree(tmp)
    print(json.dumps(found))
else:
    code, began, results = code_version(), time.perf_counter(), {part: [] for part in a.parts}
    cases = {
        "build": [("build", a.images, a.threads, a.workers)],
        "exact": [("exact", n, a.threads) for n in a.vectors],
        "approximate": [("approximate", a.vectors[-1], c, a.threads) for c in (0, 1000)],
    }
    for part in a.parts:
        for case in cases[part]:  # each in a process of its own: its memory is its own
            done = subprocess.run(
                [sys.executable, __file__, "--one", json.dumps(case)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": str(a.threads)},
            )
            results[part].append(json.loads(done.stdout))
            print(part, results[part][-1], flush=True)
    write_json(
        a.out,
        run_record(
            "benchmark",
            {"threads": a.threads, "workers": a.workers},
            0,
            "noise: smooth pictures, random vectors",
            results,
            time.perf_counter() - began,
            code=code,
        ),
    )
