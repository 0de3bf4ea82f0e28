"""Loose files or shards: how fast can pairs be read? `python benchmarks/shards.py [--folder DIR]`, about a
minute and a half, 0.5 GB.

Writes a corpus of photographic size (640 x 480 JPEG, 5 s wav) to a folder of its own in DIR, packs it, and
reads one epoch of pairs in one process: in random order and in the order that draws from two shards at a
time; with the files dropped from memory before, and once more with them there; the bytes alone, and
decoded. Give the disk on which your corpus lies: the answer is the disk's. The record goes to
results/bench-shards.json.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image

from sgmim.core import cache_folder, rng_for, run_record, write_json
from sgmim.data.audio import RATE, write_audio
from sgmim.data.batches import Order
from sgmim.data.corpus import Columns, Corpus
from sgmim.data.shards import open_shards, write_shards
from sgmim.scenes.corpus import load_scenes

SIDE, SECONDS = 256, 8.0  # what is asked for: pixels of the short side, and the beginning of a recording
GRAIN, HISS = 6, 1e-3  # drawings and synthetic voices compress too well: noise as of a camera and a room


def write_loose(folder, n_images, captions):
    """A corpus of loose files, made of embedded scenes: enlarged pictures with grain, three sentences
    joined, with hiss."""
    scenes = load_scenes("train", 30, captions=3, size=96, cache=folder / "scenes", progress=False)
    rng, voices, images, audio = rng_for("bench"), [scenes.audio(j) for j in range(len(scenes))], [], []
    for i in range(n_images):
        picture = (
            Image.fromarray(scenes.image(i % 30))
            .resize((640, 640), Image.Resampling.BICUBIC)
            .crop((0, 80, 640, 560))
        )
        images.append(f"{i // 1000}/{i:06d}.jpg")
        path = folder / "images" / images[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            np.clip(np.asarray(picture) + rng.normal(0, GRAIN, (480, 640, 3)), 0, 255).astype(np.uint8)
        ).save(path, quality=90)
        for _ in range(captions):
            wave = np.concatenate([voices[k] for k in rng.integers(len(voices), size=3)])
            audio.append(f"{len(audio) // 1000}/{len(audio):06d}.wav")
            write_audio(folder / "wavs" / audio[-1], np.clip(wave + rng.normal(0, HISS, len(wave)), -1, 1))
    n = len(audio)
    return Corpus(
        "bench",
        "train",
        folder / "images",
        folder / "wavs",
        Columns(images, np.arange(n) // captions, audio, [f"u{j}" for j in range(n)], ["s"] * n),
    )


def forget(folder):
    """Drop the files of a folder from memory, as far as that goes without being root (what the system
    knows about folders and names stays)."""
    os.sync()
    for path in Path(folder).rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def epoch(n, groups=None):
    order = Order(np.full(n, 1), 50, n // 50, seed=1, groups=groups, window=2)
    return [int(j) for k in range(len(order)) for j in order[k]]


def read(corpus, order, decode):
    "Read the pairs in `order`; pairs a second."
    of, loose, began = corpus.image_of_caption, type(corpus) is Corpus, time.perf_counter()
    for j in order:
        i = int(of[j])
        if decode:
            corpus.image(i, SIDE), corpus.audio(j, SECONDS)
        elif loose:
            corpus.image_path(i).read_bytes(), corpus.audio_path(j).read_bytes()
        else:
            corpus.image_bytes(i), corpus.sound_bytes(j)
    return len(order) / (time.perf_counter() - began)


def measure(runs, rounds):
    """runs {name: (open, order, folder)} -> {name: {'bytes': {'cold', 'warm'}, 'decoded': …}}, pairs a
    second: the median of `rounds` through all of them."""
    found = {name: {what: {"cold": [], "warm": []} for what in ("bytes", "decoded")} for name in runs}
    for _ in range(rounds):
        for name, (opened, order, folder) in runs.items():
            for what in ("bytes", "decoded"):
                forget(folder)
                corpus = opened()
                for state in ("cold", "warm"):
                    found[name][what][state].append(read(corpus, order, what == "decoded"))
    return {
        name: {
            what: {state: round(float(np.median(v))) for state, v in states.items()}
            for what, states in whats.items()
        }
        for name, whats in found.items()
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--folder",
        default=cache_folder(),
        help="a folder on the disk to be measured (default: the cache folder)",
    )
    p.add_argument("--images", type=int, default=200)
    p.add_argument("--captions", type=int, default=5)
    p.add_argument(
        "--shard-mb", type=float, default=12, help="small, so that there are some shards to draw from"
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--record", default=ROOT / "results" / "bench-shards.json")
    a = p.parse_args()
    if not hasattr(os, "posix_fadvise"):
        sys.exit(
            "this system has no posix_fadvise: files cannot be dropped from memory, and every reading would"
            " be warm"
        )
    Path(a.folder).mkdir(parents=True, exist_ok=True)
    began, metrics, busy = time.perf_counter(), {}, os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=a.folder, prefix="bench-shards-") as tmp:
        tmp = Path(tmp)
        loose = write_loose(tmp / "loose", a.images, a.captions)
        forget(tmp)
        start = time.perf_counter()
        write_shards(loose, tmp / "shards", size=SIDE, shard_mb=a.shard_mb, progress=False)
        wrote = time.perf_counter() - start
        shards = open_shards(tmp / "shards", "train")

        def size(folder):
            return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())

        metrics["write"] = {
            "seconds": round(wrote, 1),
            "images_per_second": round(a.images / wrote, 1),
            "threads": os.cpu_count(),
        }
        metrics["mb"] = {
            "images, loose": round(size(tmp / "loose" / "images") / 1e6, 1),
            "wavs, loose": round(size(tmp / "loose" / "wavs") / 1e6, 1),
            "shards": round(size(tmp / "shards") / 1e6, 1),
        }
        metrics["files"] = {
            "loose": loose.n_images + len(loose),
            "shards": len(list((tmp / "shards").iterdir())),
        }
        metrics["seconds_a_recording"] = round(float(shards.samples.mean()) / RATE, 2)
        anyhow, grouped = epoch(len(loose)), epoch(len(loose), shards.shard_of_caption)

        def opened(**k):
            return lambda: open_shards(tmp / "shards", "train", **k)

        runs = {
            "loose files, random order": (lambda: loose, anyhow, tmp / "loose"),
            "shards, random order": (opened(), anyhow, tmp / "shards"),
            "shards, random, no readahead": (opened(readahead=False), anyhow, tmp / "shards"),
            "shards, two at a time": (opened(), grouped, tmp / "shards"),
        }
        metrics["pairs_per_second"] = measure(runs, a.rounds)
    config = {
        "images": a.images,
        "captions": a.captions,
        "size": SIDE,
        "max_seconds": SECONDS,
        "shard_mb": a.shard_mb,
        "rounds": a.rounds,
        "processes": 1,
    }
    # more than 0 or so: others were at work on this machine
    write_json(
        a.record,
        run_record(
            "bench-shards",
            config,
            1,
            {"name": "enlarged scenes with noise, 640 x 480", "fingerprint": loose.fingerprint},
            metrics,
            time.perf_counter() - began,
            note=(
                "cold: files dropped from memory with POSIX_FADV_DONTNEED; names and folders, and any cache"
                " below this system, stay warm"
            ),
            load_before=round(busy, 1),
        ),
    )
    speeds = metrics.pop("pairs_per_second")
    for about in (*metrics.items(), *speeds.items()):
        print(*about)


if __name__ == "__main__":
    main()
