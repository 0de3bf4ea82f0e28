"""Does a run survive? python benchmarks/kill.py [--kills 20] → results/bench-kill.json

One training of the small model on the embedded corpus, uninterrupted; then the same command killed with
SIGKILL at random moments (while it loads, steps, evaluates, or writes a checkpoint) and begun again until
it is done. The weights at the end have to be the same to the bit. Reported too: what the kills cost.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sgmim.core import code_version, load_checkpoint, read_json, run_record, write_json

TRAIN = """
import sys, torch
from dataclasses import replace
from sgmim.scenes.corpus import load_scenes
from sgmim.models.sgmim import SGMIM, scenes_tiny
from sgmim.models.pretrained import load_tiny_backbones
from sgmim.train import fit, recipe
torch.set_num_threads(1)
torch.manual_seed(0)
train, dev = load_scenes('train', 512, 2, progress=False), load_scenes('dev', 64, progress=False)
model = load_tiny_backbones(SGMIM(replace(scenes_tiny(), mim_onset=.5)))
print('begun', flush=True)
config = replace(recipe('scenes-tiny'), epochs=float(sys.argv[2]), save_every=3, eval_every=.5)
fit(model, train, dev, config, out=sys.argv[1], device='cpu', progress=False)
"""


def weights(folder):
    "A hash of the last checkpoint's tensors: weights, momentum encoder, optimiser."
    tensors, meta = load_checkpoint(sorted(folder.glob("checkpoints/step-*"))[-1])
    h = hashlib.blake2b(digest_size=16)
    for k in sorted(tensors):
        h.update(k.encode() + tensors[k].numpy().tobytes())
    return h.hexdigest(), meta["step"]


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--kills", type=int, default=20)
p.add_argument("--epochs", type=float, default=4.0)
p.add_argument("--seed", type=int, default=0)
p.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "bench-kill.json")
a = p.parse_args()
code, began, rng = code_version(), time.perf_counter(), random.Random(a.seed)
with tempfile.TemporaryDirectory() as tmp:

    def start(name):
        return subprocess.Popen(
            [sys.executable, "-c", TRAIN, f"{tmp}/{name}", str(a.epochs)],
            start_new_session=True,
            stdout=subprocess.PIPE,
        )

    def whole(name):
        at = time.perf_counter()
        assert start(name).wait() == 0
        return time.perf_counter() - at

    whole("first")  # makes the corpus
    alone, kills, log = whole("alone"), 0, []
    want, steps = weights(Path(tmp) / "alone")
    training = read_json(Path(tmp) / "alone" / "record.json")["wall_seconds"]
    loading = alone - training
    while True:
        process = start("killed")
        early = kills % 7 == 3
        after = rng.uniform(0.0, 2 * training / a.kills) if kills < a.kills else None
        if after is not None and early:
            after = rng.uniform(0.0, loading)  # one in seven while it loads
        else:
            process.stdout.readline()  # from here on it trains
        try:
            process.wait(after)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            found = (
                sorted(p.name for p in Path(tmp, "killed", "checkpoints").glob("*"))
                if Path(tmp, "killed", "checkpoints").exists()
                else []
            )
            log.append({"in_training": not early, "after_seconds": round(after, 2), "checkpoints": found})
            print(kills, log[-1], flush=True)
    got, _ = weights(Path(tmp) / "killed")
result = {
    "kills": kills,
    "steps": steps,
    "identical": got == want,
    "seconds_uninterrupted": alone,
    "log": log,
}
print({k: v for k, v in result.items() if k != "log"})
write_json(
    a.out,
    run_record(
        "benchmark",
        {"kills": a.kills, "epochs": a.epochs},
        a.seed,
        "embedded corpus, 512 images × 2 captions",
        result,
        time.perf_counter() - began,
        "cpu",
        code,
    ),
)
raise SystemExit(0 if got == want and kills >= a.kills else 1)
