"""One step at full size, against the rate of the machine and against a plain composition: python
benchmarks/step.py [--device cuda] → results/bench-step[-cuda].json

HuBERT Base and ViT-B/16 with random weights, frozen convolutions. On a CPU 4 pairs of 5 s in float32; on
CUDA 100 pairs of 8 s in bfloat16. Forward, backward, clipping, update. Each variant runs in
a process of its own; ours keeps freed memory, as `fit` does, and its waiting threads sleep, as in the
commands; plain has the defaults of the allocator and of OpenMP. Reported:
CPU-seconds and seconds of a step (the median), pairs a second, the operations of a step, the share of the
rate that large matrix products reach in the same process, peak memory; on a CPU also what
kinds of operation take the time of a step (one more, under torch's profiler, where there is more than
one). `--rounds 3` takes all variants in turn, three times; then the medians are those of the rounds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sgmim.core import code_version, pick_device, run_record, write_json
from sgmim.models.losses import info_nce
from sgmim.models.sgmim import SGMIM, paper, scenes_tiny
from sgmim.train import TrainConfig
from sgmim.training.plan import CountFlops
from sgmim.training.step import keep_memory, make_optimiser, train_step


class Plain(nn.Module):
    """What one writes first: transformers' HuBERT, timm's vision transformer, the mean of each, the same
    loss. It has the parts that `train_step` asks for."""

    def __init__(self, eager=False, depth=12):
        super().__init__()
        import timm
        from transformers import HubertConfig, HubertModel

        self.config = replace(paper(), reconstruction="none")
        self.audio = HubertModel(
            HubertConfig(
                attn_implementation="eager" if eager else "sdpa",
                apply_spec_augment=False,
                layerdrop=0.0,
                num_hidden_layers=depth,
            )
        )
        self.audio.feature_extractor._freeze_parameters()
        self.image = timm.create_model("vit_base_patch16_224", num_classes=0, depth=depth)
        if eager:
            for b in self.image.blocks:
                b.attn.fused_attn = False
        self.image_proj, self.audio_proj, self.decoder = nn.Linear(768, 768), nn.Linear(768, 768), None

    def contrast(self, z_image, z_audio, image_id=None, own=None):
        return info_nce(z_image, z_audio, image_id)

    def update_momentum(self, alpha):
        pass

    def forward(self, batch, reconstruct=False, lam=None, mask=None, contrast=None):
        z_image = self.image_proj(self.image.forward_features(batch["image"]).mean(1))
        z_audio = self.audio_proj(self.audio(batch["audio"]).last_hidden_state.mean(1))
        loss = (contrast or self.contrast)(z_image, z_audio, batch["image_id"])
        return {
            "loss": loss,
            "loss_nce": loss,
            "loss_mim": torch.zeros_like(loss),
            "z_image": z_image,
            "z_audio": z_audio,
        }


def build(variant, tiny):
    "'plain', 'plain-eager', or a row of Table 4 as `SGMIMConfig.reconstruction` names it."
    if variant.startswith("plain"):
        return Plain(variant == "plain-eager", 1 if tiny else 12)
    return SGMIM(replace(scenes_tiny() if tiny else paper(), reconstruction=variant))


# how OpenMP's threads wait: asleep, as sgmim's commands have it; awake, as OpenMP has it
WAITING = {
    "asleep": {"OMP_WAIT_POLICY": "passive"},
    "briefly awake": {"GOMP_SPINCOUNT": "10000"},
    "awake": {},
}


def environment(waiting="asleep"):
    "Of a process that measures, whose threads wait as in `WAITING`."
    return {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | WAITING[
        waiting
    ]


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device, dtype, seconds=2.0):
    "FLOP a second of a product of the shape of HuBERT's feed-forward."
    a = torch.randn(4096 if device.type == "cuda" else 1000, 768, device=device, dtype=dtype)
    b = torch.randn(768, 3072, device=device, dtype=dtype)
    if device.type == "cuda":
        a = torch.randn(8192, 8192, device=device, dtype=dtype)
        b = torch.randn(8192, 8192, device=device, dtype=dtype)
    for _ in range(3):
        a @ b
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait(device)
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        wait(device)
        best = max(best, 5 * 2 * a.shape[0] * a.shape[1] * b.shape[1] / (time.perf_counter() - began))
    return best


KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "convolutions": (
        "mkldnn_convolution",
        "convolution_backward",
        "thnn_conv2d",
        "_slow_conv2d_forward",
        "_slow_conv2d_backward",
    ),
    "random numbers of dropout": ("bernoulli_", "native_dropout"),
    "fused attention": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
}


def kinds_of_operation(run):
    "{kind: seconds} of `run()`, as the thread that calls sees them."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as p:
        run()
    events = p.key_averages()
    of = {
        kind: sum(e.self_cpu_time_total for e in events if e.key.removeprefix("aten::") in names) / 1e6
        for kind, names in KINDS.items()
    }
    of["optimiser"] = sum(e.cpu_time_total for e in events if e.key.startswith("Optimizer.step")) / 1e6
    return of | {"everything else": sum(e.self_cpu_time_total for e in events) / 1e6 - sum(of.values())}


def measure(
    variant,
    device,
    threads,
    pairs,
    seconds,
    amp,
    steps,
    tiny,
    compiled=False,
    change=lambda model: None,
    **training,
):
    "One variant, in this process, after `change(model)`; `training`: of its `TrainConfig`."
    if threads:
        torch.set_num_threads(threads)
    if not variant.startswith("plain"):
        keep_memory()  # as `fit` does
    torch.manual_seed(0)
    model, n = build(variant, tiny).to(device).train(), round(seconds * 16_000)
    change(model)
    config, size = TrainConfig(amp=amp, batch_size=pairs, **training), model.config.image_size
    batch = {
        "image": torch.randn(pairs, 3, size, size),
        "audio": 0.1 * torch.randn(pairs, n),
        "audio_len": torch.full((pairs,), n),
        "image_id": torch.arange(pairs),
        "index": torch.arange(pairs),
    }
    optimiser, cpu, wall = make_optimiser(model, config), [], []
    with CountFlops() as flops:
        train_step(model, batch, optimiser, 50, 1000, 0, config)
    if compiled:
        for part in (
            model.audio_encoder,
            model.image_encoder.vit.blocks,
            model.momentum_encoder,
            model.decoder,
        ):  # what is called, not what holds it
            if part is not None:
                part.compile()
        train_step(model, batch, optimiser, 50, 1000, 0, config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for k in range(steps):
        wait(device)
        was, began = time.process_time(), time.perf_counter()
        train_step(model, batch, optimiser, 51 + k, 1000, 0, config)
        wait(device)
        cpu.append(time.process_time() - was)
        wall.append(time.perf_counter() - began)
    dtype = torch.bfloat16 if amp == "bf16" or (amp == "auto" and device.type == "cuda") else torch.float32
    rate, step = matmul_rate(device, dtype), statistics.median(wall)
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    kinds = (
        kinds_of_operation(lambda: train_step(model, batch, optimiser, 51 + steps, 1000, 0, config))
        if device.type == "cpu" and steps > 1
        else None
    )
    return {
        "variant": variant,
        "threads": torch.get_num_threads(),
        "pairs": pairs,
        "seconds_of_audio": seconds,
        "amp": amp,
        "steps": steps,
        "cpu_seconds": statistics.median(cpu),
        "seconds": step,
        "pairs_per_second": pairs / step,
        "flop": flops.total,
        "flop_per_pair": flops.total / pairs,
        "matmul_flop_per_second": rate,
        "share_of_matmul_rate": flops.total / step / rate,
        "peak_bytes": peak,
        "kinds": kinds,
    }


def merged(rounds):
    """The results of several rounds as one: medians, the 'rounds' of the times, the kinds of the last.
    Failed processes are left out, unless all failed."""
    good = [r for r in rounds if "error" not in r]
    if not good:
        return rounds[0]
    numbers = {
        k: statistics.median(r[k] for r in good)
        for k, v in good[0].items()
        if isinstance(v, float) or k == "peak_bytes"
    }
    return (
        good[-1]
        | numbers
        | (
            {"rounds": {k: [r[k] for r in good] for k in ("cpu_seconds", "seconds")}}
            if len(rounds) > 1
            else {}
        )
        | ({"failed": len(rounds) - len(good)} if len(good) < len(rounds) else {})
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device")
    p.add_argument(
        "--variants",
        nargs="+",
        default=["none", "summary", "plain", "plain-eager"],
        help="rows as SGMIMConfig.reconstruction names them; plain, plain-eager",
    )
    p.add_argument("--threads", nargs="+", type=int, help="default: 1 and 2 on a CPU")
    p.add_argument("--pairs", type=int)
    p.add_argument("--seconds", type=float)
    p.add_argument("--amp", choices=("auto", "bf16", "off"), default="auto")
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--tiny", action="store_true", help="the small model: to try the script")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--out", type=Path)
    p.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    device, began, code = pick_device(a.device), time.perf_counter(), code_version()
    pairs = a.pairs or (100 if device.type == "cuda" else 4)
    seconds = a.seconds or (8.0 if device.type == "cuda" else 5.0)
    if a.one:
        print(
            json.dumps(
                measure(
                    a.variants[0],
                    device,
                    (a.threads or [0])[0],
                    pairs,
                    seconds,
                    a.amp,
                    a.steps,
                    a.tiny,
                    a.compile,
                )
            )
        )
    else:
        found = {}
        out = (
            a.out
            or Path(__file__).parents[1]
            / "results"
            / f"bench-step{'-cuda' if device.type == 'cuda' else ''}.json"
        )
        cases = [
            (variant, threads)
            for threads in a.threads or ([0] if device.type == "cuda" else [1, 2])
            for variant in a.variants
        ]
        for variant, threads in cases * a.rounds:
            amp = "off" if variant == "plain-eager" and device.type == "cuda" else a.amp
            done = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--one",
                    "--variants",
                    variant,
                    "--threads",
                    str(threads),
                    "--pairs",
                    str(pairs),
                    "--seconds",
                    str(seconds),
                    "--amp",
                    amp,
                    "--steps",
                    str(a.steps),
                    "--device",
                    str(device),
                ]
                + ["--tiny"] * a.tiny
                + ["--compile"] * a.compile,
                capture_output=True,
                text=True,
                env=environment("awake" if variant.startswith("plain") else "asleep"),
            )
            result = (
                json.loads(done.stdout.splitlines()[-1])
                if done.returncode == 0
                else {
                    "variant": variant,
                    "threads": threads,
                    "error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][
                        -300:
                    ],
                }
            )
            found.setdefault((variant, threads), []).append(result)
            write_json(
                out,
                run_record(
                    "benchmark",
                    {
                        "variants": a.variants,
                        "pairs": pairs,
                        "seconds_of_audio": seconds,
                        "amp": a.amp,
                        "compiled": a.compile,
                        "rounds": a.rounds,
                    },
                    0,
                    "noise",
                    {"variants": [merged(r) for r in found.values()]},
                    time.perf_counter() - began,
                    device,
                    code,
                ),
            )
            print(
                {
                    k: float(f"{v:.4g}") if isinstance(v, float) else v
                    for k, v in result.items()
                    if k != "kinds"
                },
                flush=True,
            )
