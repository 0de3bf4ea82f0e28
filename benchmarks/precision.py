"""Does bfloat16 learn the same? python benchmarks/precision.py [--device cuda] →
results/bench-precision[-cuda].json

The small model on the embedded corpus, the same seeds in float32 and in bfloat16: recalls on dev, seconds;
and one step of both, their losses and the angle between their gradients.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from sgmim.core import code_version, pick_device, run_record, write_json
from sgmim.models.pretrained import load_tiny_backbones
from sgmim.models.sgmim import SGMIM, scenes_tiny
from sgmim.scenes.corpus import load_scenes
from sgmim.train import fit, recipe
from sgmim.training.feed import Feed
from sgmim.training.step import train_step


def gradient(config, batch, device):
    "The gradient of one step of the fresh model, flat; its loss."
    torch.manual_seed(0)
    model = load_tiny_backbones(SGMIM(scenes_tiny())).to(device).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    out = train_step(model, batch, optimiser, 5, 10, 0, replace(config, clip=0.0))
    return torch.cat(
        [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    ), out["loss"]


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--device")
p.add_argument("--images", type=int, default=2000)
p.add_argument("--epochs", type=float, default=4.0)
p.add_argument("--seeds", type=int, default=3)
p.add_argument("--out", type=Path)
a = p.parse_args()
device, code, began = pick_device(a.device), code_version(), time.perf_counter()
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 as it is
train, dev = load_scenes("train", a.images, 2, progress=False), load_scenes("dev", 500, progress=False)
base, runs = replace(recipe("scenes-tiny"), epochs=a.epochs), []
batch = next(Feed(train, base, 0, scenes_tiny()).from_step(0))
(g32, l32), (g16, l16) = (gradient(replace(base, amp=amp), batch, device) for amp in ("off", "bf16"))
for seed in range(a.seeds):
    for amp in ("off", "bf16"):
        torch.manual_seed(seed)
        fitted = fit(
            load_tiny_backbones(SGMIM(scenes_tiny())),
            train,
            dev,
            replace(base, amp=amp, seed=seed),
            device=device,
            progress=False,
        )
        runs.append(
            {
                "seed": seed,
                "amp": amp,
                "recall_at_1": fitted.record["metrics"]["best"]["score"][0],
                "recall_at_10": fitted.record["metrics"]["best"]["score"][1],
                "seconds": fitted.record["wall_seconds"],
                "loss": fitted.record["metrics"]["losses"]["loss"],
            }
        )
        print(runs[-1], flush=True)
mean = {
    amp: {
        k: sum(r[k] for r in runs if r["amp"] == amp) / a.seeds
        for k in ("recall_at_1", "recall_at_10", "seconds")
    }
    for amp in ("off", "bf16")
}
found = {
    "runs": runs,
    "mean": mean,
    "difference": {k: mean["bf16"][k] - mean["off"][k] for k in mean["off"]},
    "step": {"loss_off": l32, "loss_bf16": l16, "cosine": float(g32 @ g16 / (g32.norm() * g16.norm()))},
}
print({k: v for k, v in found.items() if k != "runs"})
out = (
    a.out
    or Path(__file__).parents[1]
    / "results"
    / f"bench-precision{'-cuda' if device.type == 'cuda' else ''}.json"
)
write_json(
    out,
    run_record(
        "benchmark",
        {"images": a.images, "epochs": a.epochs, "seeds": a.seeds},
        0,
        {"train": train.fingerprint, "dev": dev.fingerprint},
        found,
        time.perf_counter() - began,
        device,
        code,
    ),
)
