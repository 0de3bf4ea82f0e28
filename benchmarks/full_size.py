"""What a pair of the paper's models costs on this machine: python benchmarks/full_size.py [--device cuda]
→ results/bench-full-size.json

Random weights, batches of noise, audio at the full length of each recipe; one whole step of the optimiser
beside it.
"""

import argparse
import time
from pathlib import Path

import torch

from sgmim.core import code_version, pick_device, run_record, set_seed, write_json
from sgmim.models.sgmim import PRESETS, SGMIM
from sgmim.train import recipe
from sgmim.training.plan import measured, parameter_counts, shape_cost
from sgmim.training.step import make_optimiser, train_step

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--device")
p.add_argument("--presets", nargs="+", default=[n for n in PRESETS if n != "scenes-tiny"])
p.add_argument("--out", default=Path(__file__).parents[1] / "results" / "bench-full-size.json")
a = p.parse_args()
device, code, began, found = pick_device(a.device), code_version(), time.perf_counter(), {}
for name in a.presets:
    set_seed(0)
    config, model = recipe(name), SGMIM(PRESETS[name]())
    cost = measured(PRESETS[name](), config, device)
    n = round(config.max_seconds * 16_000)
    batch = {
        "image": torch.randn(2, 3, 224, 224),
        "audio": 0.1 * torch.randn(2, n),
        "audio_len": torch.full((2,), n),
        "image_id": torch.arange(2),
        "index": torch.arange(2),
    }
    optimiser, start = make_optimiser(model, config), time.perf_counter()
    out = train_step(model, batch, optimiser, 50, 1000, 0, config)
    loss = float(out["loss"])
    found[name] = {
        "parameters": parameter_counts(model.config)["all"],
        "seconds_of_audio": config.max_seconds,
        "seconds_per_pair": cost.after,
        "seconds_fixed": cost.fixed,
        "share_before_onset": cost.before / cost.after,
        "activation_bytes_per_pair": shape_cost(model.config, config.max_seconds)["kept"],
        "peak_bytes_per_pair": cost.bytes_pair,
        "step_of_two_pairs_seconds": time.perf_counter() - start,
        "loss": loss,
    }
    print(name, {k: round(v, 3) if isinstance(v, float) else v for k, v in found[name].items()}, flush=True)
write_json(
    a.out,
    run_record(
        "benchmark", {"presets": a.presets}, 0, "noise", found, time.perf_counter() - began, device, code
    ),
)
