"""What each lever is worth: python benchmarks/levers.py → results/bench-levers.json

The step of benchmarks/step.py (full size, '+ Summary') as it is, and with one thing changed: a lever that
is in use taken out, or one that is not tried. Each case in a process of its own; of all cases the
unchanged one is first and last, since a machine is seldom the same for long. `--rounds 3` takes all in
turn, three times; `--busy 1` keeps a core busy meanwhile.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from step import environment, measure, merged
from torch.utils.checkpoint import checkpoint

import sgmim.models.audio_encoder
import sgmim.models.sgmim
import sgmim.training.optim
from sgmim.core import code_version, pick_device, run_record, write_json
from sgmim.models.patches import gather_patches


def eager(model):
    "Attention with its matrix written out."
    torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, attn_mask=None, dropout_p=0.0, **_: (
        torch.dropout(
            (
                (q @ k.mT) * q.shape[-1] ** -0.5
                + (
                    0
                    if attn_mask is None
                    else torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
                )
            ).softmax(-1),
            dropout_p,
            True,
        )
        @ v
    )


def one_by_one(model):
    "BertAdam, tensor by tensor, as its formula is written."

    def update(self, group, lr):
        (b1, b2), one = group["betas"], [p for p in group["params"] if p.grad is not None]
        for p in one:
            s = self.state[p]
            if not s:
                s.update(m=torch.zeros_like(p), v=torch.zeros_like(p))
            s["m"].mul_(b1).add_(p.grad, alpha=1 - b1)
            s["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            p.sub_(lr * (s["m"] / (s["v"].sqrt() + group["eps"]) + group["weight_decay"] * p))

    sgmim.training.optim.BertAdam._update = update


def momentum_loop(model):
    "The momentum encoder, tensor by tensor."

    @torch.no_grad()
    def ema(average, model, alpha):
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.mul_(alpha).add_(p, alpha=1 - alpha)

    sgmim.models.sgmim.ema_update = ema


def channels_last(model):
    "The patch embedding on channels-last weights."
    model.image_encoder.to(memory_format=torch.channels_last)


def whole_matrix(model):
    "The attention of [CLS] as one row of the whole matrix."

    def attention(layer, tokens, frame_mask=None, heads=12, drop_self=True, renormalise=False):
        q, k = (
            project(tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
            for project in (layer.q_proj, layer.k_proj)
        )
        score = q @ k.mT * q.shape[-1] ** -0.5
        if frame_mask is not None:
            score = score.masked_fill(
                torch.nn.functional.pad(frame_mask, (1, 0))[:, None, None], float("-inf")
            )
        return score.softmax(-1)[:, :, 0, int(drop_self) :]

    sgmim.models.audio_encoder.cls_attention = attention


def every_patch(model):
    "The masked pass through the image encoder on all patches, of which the visible ones are then taken."
    encoder = model.image_encoder

    def encode(tokens, mask=None):
        z = encoder.vit.norm(encoder.vit.blocks(tokens))
        return z if mask is None else torch.cat([z[:, :1], gather_patches(z[:, 1:], mask)], dim=1)

    encoder.encode = encode


def trained_convolutions(model):
    "HuBERT's convolutions trained with the rest."
    model.audio_encoder.freeze_cnn = False
    model.audio_encoder.hubert.feature_extractor.requires_grad_(True)


def checkpointed(model):
    "Gradient checkpointing: each layer's activations are computed again in the backward pass."
    for layer in [*model.audio_encoder.hubert.encoder.layers, *model.image_encoder.vit.blocks]:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def one_kernel(model):
    """BertAdam by torch's fused AdamW kernel, told that so many updates are done that its bias correction
    is 1. It decays the weights in a step of its own, which float32 rounds away at the paper's rate."""

    def update(self, group, lr):
        (b1, b2), some = group["betas"], [p for p in group["params"] if p.grad is not None]
        for p in some:
            if not self.state[p]:
                self.state[p].update(
                    m=torch.zeros_like(p), v=torch.zeros_like(p), late=torch.tensor(1e8, device=p.device)
                )

        def of(k):
            return [self.state[p][k] for p in some]

        torch._fused_adamw_(
            some,
            [p.grad for p in some],
            of("m"),
            of("v"),
            [],
            of("late"),
            lr=lr,
            beta1=b1,
            beta2=b2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    sgmim.training.optim.BertAdam._update = update


CASES = {  # name: (what is changed, of step.measure's options)
    "as it is": (lambda model: None, {}),
    "without fused attention": (eager, {}),
    "optimiser without foreach": (one_by_one, {}),
    "momentum without foreach": (momentum_loop, {}),
    "without keeping freed memory": (lambda model: None, {}),
    "waiting threads awake": (lambda model: None, {}),
    "waiting threads awake for a moment": (lambda model: None, {}),
    "[CLS] row by the whole matrix": (whole_matrix, {}),
    "masked pass on every patch (other numerics)": (every_patch, {}),
    "convolutions trained (other numerics)": (trained_convolutions, {}),
    "tried: one fused kernel for the optimiser": (one_kernel, {}),
    "tried: gradient checkpointing": (checkpointed, {}),
    "gradient caching, half the pairs at a time": (lambda model: None, {"micro_batch": True}),
    "tried: channels last": (channels_last, {}),
    "tried: torch.compile": (lambda model: None, {"compiled": True}),
    "bfloat16 (other numerics)": (lambda model: None, {"amp": "bf16"}),
    "as it is, again": (lambda model: None, {}),
}

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device")
    p.add_argument("--pairs", type=int, default=2)
    p.add_argument("--seconds", type=float, default=5.0)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    p.add_argument("--cases", nargs="+", default=list(CASES), metavar="CASE")
    p.add_argument("--rounds", type=int, default=1, help="all cases in turn, so often; the medians are kept")
    p.add_argument(
        "--busy",
        type=int,
        default=0,
        help="processes that do nothing but count meanwhile: a machine that is shared",
    )
    p.add_argument("--tiny", action="store_true", help="the small model: to try the script")
    p.add_argument("--out", type=Path)
    p.add_argument("--one", help=argparse.SUPPRESS)
    a = p.parse_args()
    device, code, began, found = pick_device(a.device), code_version(), time.perf_counter(), {}
    if a.one:
        change, options = CASES[a.one]
        if "micro_batch" in options:
            options = {"micro_batch": max(1, a.pairs // 2)}
        if "freed memory" in a.one:
            sys.modules["step"].keep_memory = lambda: None
        raise SystemExit(
            print(
                json.dumps(
                    measure(
                        "summary",
                        device,
                        a.threads[0],
                        a.pairs,
                        a.seconds,
                        **{"amp": "auto", **options},
                        steps=a.steps,
                        tiny=a.tiny,
                        change=change,
                    )
                )
            )
        )
    # ends with its parent, however that ends
    busy = (
        "import os, time\nparent = os.getppid()\nwhile os.getppid() == parent:\n    end = time.time() + 1\n  "
        "  while time.time() < end: pass"
    )
    for _ in range(a.busy):
        subprocess.Popen([sys.executable, "-c", busy])
    of_no_effect = (
        ("waiting threads", "without keeping freed memory", "bfloat16") if device.type == "cuda" else ()
    )
    for case, threads in [
        (case, threads)
        for threads in (a.threads if device.type == "cpu" else [0])
        for _ in range(a.rounds)
        for case in a.cases
        if not case.startswith(of_no_effect)
    ]:
        done = subprocess.run(
            [
                sys.executable,
                __file__,
                "--one",
                case,
                "--device",
                str(device),
                "--threads",
                str(threads),
                "--pairs",
                str(a.pairs),
                "--seconds",
                str(a.seconds),
                "--steps",
                str(a.steps),
            ]
            + ["--tiny"] * a.tiny,
            capture_output=True,
            text=True,
            env=environment(
                {"waiting threads awake": "awake", "waiting threads awake for a moment": "briefly awake"}.get(
                    case, "asleep"
                )
            ),
        )
        result = (
            json.loads(done.stdout.splitlines()[-1])
            if done.returncode == 0
            else {
                "threads": threads,
                "error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][-300:],
            }
        )
        found.setdefault((case, threads), []).append({"case": case, **result})
        print(
            case,
            {
                k: round(v, 3)
                for k, v in result.items()
                if k in ("threads", "cpu_seconds", "seconds", "share_of_matmul_rate")
            },
            result.get("error", ""),
            flush=True,
        )
        write_json(
            a.out
            or Path(__file__).parents[1]
            / "results"
            / f"bench-levers{'-cuda' if device.type == 'cuda' else ''}.json",
            run_record(
                "benchmark",
                {
                    "pairs": a.pairs,
                    "seconds_of_audio": a.seconds,
                    "tiny": a.tiny,
                    "rounds": a.rounds,
                    "busy": a.busy,
                },
                0,
                "noise",
                {"cases": [merged(r) for r in found.values()]},
                time.perf_counter() - began,
                device,
                code,
            ),
        )
