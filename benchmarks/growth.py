"""How time and memory grow: python benchmarks/growth.py [--device cuda] → results/bench-growth[-cuda].json
and .png

A step of the full model as the batch grows, and as the audio gets longer (benchmarks/step.py, a process
each); the order of the batches and a corpus without media as the number of captions grows. The exponent is
the slope of log against log over the larger half of the sizes; memory is counted above the smallest size.
On a CPU seconds are those of the processor, with one thread: what else runs does not count.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from sgmim.core import code_version, pick_device, run_record, write_json
from sgmim.data.batches import Order
from sgmim.data.corpus import Columns, Corpus


def step(pairs, seconds, a):
    "A step of '+ Summary' in a process of its own."
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("step.py")),
            "--one",
            "--variants",
            "summary",
            "--threads",
            "1",
            "--pairs",
            str(pairs),
            "--seconds",
            str(seconds),
            "--steps",
            str(a.steps),
            "--device",
            a.device,
        ]
        + ["--tiny"] * a.tiny,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][-300:]}
    r = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": r["seconds"] if a.device.startswith("cuda") else r["cpu_seconds"],
        "peak_bytes": r["peak_bytes"],
    }


def corpus(n):
    "Names of `n` captions, five an image, and the batches of an epoch's beginning."
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time()
    images = [f"images/{i // 1000:05d}/{i:09d}.jpg" for i in range(n // 5)]
    c = Corpus(
        "growth",
        "train",
        Path("images"),
        Path("wavs"),
        Columns(
            images,
            np.arange(n) // 5,
            [f"wavs/{j // 1000:05d}/{j:09d}.wav" for j in range(n)],
            [f"u{j}" for j in range(n)],
            ["s"] * n,
        ),
    )
    made = time.process_time() - began
    began = time.process_time()
    order = Order(np.full(len(c), 128_000), 100, n // 100, 0)
    order[0]
    return {
        "seconds": made,
        "seconds_first_batch": time.process_time() - began,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
    }


def exponent(sizes, values):
    "Slope of log value against log size over the larger half."
    keep = [(math.log(s), math.log(v)) for s, v in zip(sizes, values, strict=True) if v > 0][
        -max(2, (len(sizes) + 1) // 2) :
    ]
    return float(np.polyfit(*zip(*keep, strict=True), 1)[0]) if len(keep) > 1 else None


def figure(found, path):
    from sgmim.evaluation.figures import Picture, save_figure

    fig = Picture(3.2 * len(found), 2.8)
    for ax, (name, f) in zip(fig.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        ax.loglog(f["sizes"], f["seconds"], "o-", label=f"seconds (exponent {f['exponent_seconds']:.2f})")
        if f["exponent_bytes"]:
            ax.loglog(
                f["sizes"],
                [b / 2**30 for b in f["bytes"]],
                "s--",
                label=f"GiB (exponent {f['exponent_bytes']:.2f})",
            )
        ax.set_xlabel(name)
        ax.legend(fontsize=7, frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(fig, path)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device")
    p.add_argument("--pairs", nargs="+", type=int)
    p.add_argument("--seconds", nargs="+", type=float, default=[2.0, 4.0, 8.0, 16.0])
    p.add_argument("--captions", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    p.add_argument("--steps", type=int, default=2)
    p.add_argument("--tiny", action="store_true", help="the small model: to try the script")
    p.add_argument("--out", type=Path)
    p.add_argument("--corpus", type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.corpus:
        raise SystemExit(print(json.dumps(corpus(a.corpus))))
    device, code, began, found = pick_device(a.device), code_version(), time.perf_counter(), {}
    a.device = str(device)
    cuda = device.type == "cuda"
    out = a.out or Path(__file__).parents[1] / "results" / f"bench-growth{'-cuda' if cuda else ''}.json"

    def sweep(name, sizes, measure):
        rows = [
            (s, r)
            for s, r in ((s, measure(s)) for s in sizes)
            if print(name, s, r, flush=True) or "error" not in r
        ]
        sizes, rows = [s for s, _ in rows], [r for _, r in rows]
        grown = [r["peak_bytes"] for r in rows]
        above = [b - grown[0] for b in grown][1:]
        if len(sizes) > 1:
            found[name] = {
                "sizes": sizes,
                "seconds": [r["seconds"] for r in rows],
                "bytes": grown,
                "exponent_seconds": exponent(sizes, [r["seconds"] for r in rows]),
                "exponent_bytes": exponent([s - sizes[0] for s in sizes[1:]], above),
            }
        write_json(
            out,
            run_record(
                "benchmark",
                {"pairs": a.pairs, "seconds": a.seconds, "captions": a.captions, "tiny": a.tiny},
                0,
                "noise",
                found,
                time.perf_counter() - began,
                device,
                code,
            ),
        )

    sweep(
        "pairs of 5 s",
        a.pairs or ([8, 16, 32, 64, 128] if cuda else [2, 4, 8, 16]),
        lambda n: step(n, 5.0, a),
    )
    sweep("seconds of audio, 4 pairs", a.seconds, lambda s: step(4, s, a))
    sweep(
        "captions of a corpus",
        a.captions,
        lambda n: json.loads(
            subprocess.run(
                [sys.executable, __file__, "--corpus", str(n)], capture_output=True, text=True, check=True
            ).stdout.splitlines()[-1]
        ),
    )
    figure(found, out.with_suffix(".png"))
