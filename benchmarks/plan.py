"""Does the planner tell the truth? python benchmarks/plan.py [--device cuda] → results/bench-plan.json

Each case is first planned from steps measured on this machine (as `sgmim_plan --calibrate` does), then
trained in a process of its own, then measured again there (what else the machine does changes from minute
to minute, so the planned time is the mean of what was measured before and after; that of memory is
from before): the small model on the embedded corpus, without and with reconstruction, at two batch sizes
and in two precisions, and a few steps of the full model on noise. Compared: CPU-seconds and seconds of a
step (decoding included), and the peak memory of the process; of the training named 'whole', which is
evaluated and writes checkpoints: seconds in all, seconds of evaluation, and the most disk that its folder
takes. `--rounds 2` does all of it twice.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from sgmim.core import (
    code_version,
    config_from_dict,
    config_to_dict,
    peak_memory_mb,
    pick_device,
    read_json,
    run_record,
    write_json,
)
from sgmim.models.sgmim import SGMIM, SGMIMConfig, paper, scenes_tiny
from sgmim.scenes.corpus import load_scenes
from sgmim.train import TrainConfig, recipe
from sgmim.training.feed import Feed
from sgmim.training.plan import (
    decoding_seconds,
    fit_cost,
    make_plan,
    measured,
    open_workload,
    resident_bytes,
    steps_to_take,
    take_steps,
)

WARM = 2  # steps that do not count
COMPARED = ("cpu_seconds", "seconds", "peak_bytes")


def case(row, batch, amp, full=False, steps=100, images=500):
    "(name, model, training) of a run."
    if full:
        return (
            f"paper, {row}, {batch} × 5 s, {amp}",
            replace(paper(), reconstruction=row, mim_onset=3.0),
            TrainConfig(batch_size=batch, amp=amp, max_seconds=5.0, eval_seconds=5.0, epochs=6.0),
        )
    return (
        f"scenes-tiny, {row}, {batch}, {amp}",
        replace(scenes_tiny(), reconstruction=row, mim_onset=0.5 * steps * batch / images),
        replace(
            recipe("scenes-tiny"),
            batch_size=batch,
            amp=amp,
            epochs=steps / (images // batch),
            save_every=10**6,
        ),
    )


def data_of(train, images, full):
    if not full:
        return load_scenes("dev", images, progress=False)
    import torch

    n = round(train.max_seconds * 16_000)
    return [
        {
            "image": torch.randn(train.batch_size, 3, 224, 224),
            "audio": 0.1 * torch.randn(train.batch_size, n),
            "audio_len": torch.full((train.batch_size,), n),
            "image_id": torch.arange(train.batch_size),
            "index": torch.arange(train.batch_size),
        }
    ]


def run(spec):
    """The training, in this process: CPU-seconds and seconds of its steps, and its peak memory; then what
    the planner would measure now."""
    import tempfile

    import torch

    import sgmim.train as T
    import sgmim.training.snapshots as S

    torch.set_num_threads(spec["threads"])
    model, train = config_from_dict(SGMIMConfig, spec["model"]), config_from_dict(TrainConfig, spec["train"])
    marks, evaluating, disk, step, evaluate, save = [], [], [0], T.train_step, T.evaluate, S.save_checkpoint

    def marked(*args, **kwargs):
        marks.append((time.perf_counter(), time.process_time(), args[3] >= args[5]))
        out = step(*args, **kwargs)
        marks[-1] += (time.perf_counter(), time.process_time(), peak_memory_mb() * 2**20)
        return out

    def timed(*args, **kwargs):
        began, result = time.perf_counter(), evaluate(*args, **kwargs)
        evaluating.append(time.perf_counter() - began)
        return result

    def weighed(*args, **kwargs):
        save(*args, **kwargs)
        # before older checkpoints go
        disk.append(sum(f.stat().st_size for f in Path(out).rglob("*") if f.is_file()))

    T.train_step, T.evaluate, S.save_checkpoint = marked, timed, weighed
    data = data_of(train, spec["images"], spec["full"])
    with tempfile.TemporaryDirectory() as out:
        fitted = T.fit(
            SGMIM(model),
            data,
            data if spec["dev"] else None,
            config=train,
            out=out,
            device=spec["device"],
            progress=False,
        )
    ends = [m[:2] for m in marks[1:]] + [marks[-1][3:5]]
    peak = torch.cuda.max_memory_reserved() if spec["device"] == "cuda" else marks[-1][5]
    return {
        "steps": [[e[0] - m[0], e[1] - m[1], bool(m[2])] for m, e in zip(marks, ends, strict=True)],
        "peak_steps": peak,
        "peak": peak if spec["device"] == "cuda" else peak_memory_mb() * 2**20,
        "wall": fitted.record["wall_seconds"],
        "evaluating": evaluating,
        "disk": max(disk),
        "again": take_steps(spec["measure"]),
    }


def compare(name, model, train, a, full, device):
    "Plan, then run."
    before = resident_bytes() if device.type == "cpu" else None
    data = data_of(train, a.images, full)
    feed = Feed(data, train, 0, model)
    began, cpu_began = time.perf_counter(), time.process_time()
    decode = 0.0 if full else decoding_seconds(feed.pairs, 64)
    decode_cpu = decode * (time.process_time() - cpu_began) / (time.perf_counter() - began)  # of one thread
    work = replace(
        open_workload(feed, model, before=before), images=a.images, captions=a.images, decode=decode
    )
    cost = measured(model, train, device, work, a.threads)
    whole = name.startswith("whole")

    def said(cost):
        return make_plan(cost, model, train, work, workers=0)

    f, measure = said(cost), steps_to_take(model, train, device, work, a.threads)
    spec = {
        "model": config_to_dict(model),
        "train": config_to_dict(train),
        "threads": a.threads,
        "images": a.images,
        "full": full,
        "dev": whole,
        "device": str(device),
        "measure": measure,
    }
    done = subprocess.run(
        [sys.executable, __file__, "--one"], input=json.dumps(spec), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    counted = [s for s in found["steps"][WARM:]]
    after = sum(s[2] for s in counted) / len(counted)
    reading, reading_cpu = decode * train.batch_size, decode_cpu * train.batch_size

    def of(f):
        return (1 - after) * f.seconds_before + after * f.seconds_after

    again = fit_cost(found["again"], measure["parts"], decode)

    def pair(forecast, measured):
        return {
            "forecast": forecast,
            "measured": measured,
            "ratio": forecast / measured,
        }

    if whole:
        both = [f, said(again)]

        def mean(hours):
            return 3600 * sum(hours) / 2  # seconds

        return {
            "name": name,
            "steps": f.steps,
            "evaluations": len(found["evaluating"]),
            "seconds": (
                pair(mean(x.hours for x in both), found["wall"])
                | {"before_and_after": [3600 * x.hours for x in both]}
            ),
            "evaluation_seconds": pair(mean(x.hours_evaluation for x in both), sum(found["evaluating"])),
            "disk_bytes": pair(f.disk_bytes, found["disk"]),
        }
    times = [(of(f), cost.cpu), (of(said(again)), again.cpu)]
    seconds, cpu = sum(s for s, _ in times) / 2 + reading, sum(s * c for s, c in times) / 2 + reading_cpu

    def mean(k):
        return sum(s[k] for s in counted) / len(counted)

    return {
        "name": name,
        "steps": len(counted),
        "cpu_seconds": pair(cpu, mean(1)) | {"before_and_after": [s * c + reading_cpu for s, c in times]},
        "seconds": pair(seconds, mean(0)) | {"before_and_after": [s + reading for s, _ in times]},
        "peak_bytes": pair(f.memory_bytes, found["peak_steps"]),
        "peak_bytes_saving": (
            pair(max(f.memory_bytes, f.memory_saving), found["peak"]) if device.type == "cpu" else None
        ),
        "decode_seconds_a_pair": decode,
    }


def merged(rounds):
    "Several rounds of a case as one: means, and the ratio of the means."
    out = dict(rounds[0])
    for k in COMPARED + ("peak_bytes_saving", "evaluation_seconds", "disk_bytes"):
        if out.get(k):
            mean = {w: sum(r[k][w] for r in rounds) / len(rounds) for w in ("forecast", "measured")}
            out[k] = (
                out[k]
                | {**mean, "ratio": mean["forecast"] / mean["measured"]}
                | ({"ratios": [r[k]["ratio"] for r in rounds]} if len(rounds) > 1 else {})
            )
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device")
    p.add_argument("--images", type=int, default=500)
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument(
        "--pairs",
        nargs="+",
        type=int,
        help=(
            "the small model with batches of these sizes alone, + Summary in float32 and VG-HuBERT (M) in"
            " bfloat16"
        ),
    )
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument(
        "--add",
        type=Path,
        metavar="RECORD",
        help="a record of one round, which counts as another for the same trainings (but for 'whole')",
    )
    p.add_argument("--only", help="cases whose name holds this")
    p.add_argument("--out", type=Path)
    p.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        raise SystemExit(print(json.dumps(run(json.load(sys.stdin)))))
    device, code, began, found = pick_device(a.device), code_version(), time.perf_counter(), {}
    small = [
        (case(row, batch, amp, steps=a.steps, images=a.images), False)
        for amp, batch in (("off", 32), ("bf16", 64), ("off", 64), ("bf16", 32))
        for row in ("summary", "none")
    ]
    _, model, train = case("summary", 32, "off", steps=a.steps, images=a.images)
    whole = ("whole: scenes-tiny, summary, 32, off", model, replace(train, eval_every=2.0, save_every=20))
    cases = small[:2] + [(case("summary", 4, "off", full=True), True)] + small[2:] + [(whole, False)]
    if a.pairs:
        cases = [
            (case(row, n, amp, steps=a.steps, images=a.images), False)
            for n in a.pairs
            for row, amp in (("summary", "off"), ("none", "bf16"))
        ]
    if a.add:
        earlier = read_json(a.add)
        found = {c["name"]: [c] for c in earlier["metrics"]["cases"] if "cpu_seconds" in c}

    def save(found):
        result = [merged(r) for r in found.values()]
        worst = {
            k: max(
                (c[k]["ratio"] for c in result if k in c and "cpu_seconds" in c),
                key=lambda r: abs(r - 1),
                default=None,
            )
            for k in COMPARED
        }
        out = (
            a.out
            or Path(__file__).parents[1]
            / "results"
            / f"bench-plan{'-cuda' if device.type == 'cuda' else ''}.json"
        )
        write_json(
            out,
            run_record(
                "benchmark",
                {
                    "images": a.images,
                    "steps": a.steps,
                    "threads": a.threads,
                    "rounds": a.rounds,
                    **({"added": {k: earlier[k] for k in ("code", "finished")}} if a.add else {}),
                },
                0,
                {"corpus": f"dev-{a.images}"},
                {"cases": result, "worst_ratio": worst},
                time.perf_counter() - began,
                device,
                code,
            ),
        )

    for turn in range(a.rounds):
        for (name, model, train), full in cases:
            if a.only and a.only not in name:
                continue
            found.setdefault(name, []).append(compare(name, model, train, a, full, device))
            print(
                turn,
                name,
                {
                    k: f"{v['forecast']:.4g}/{v['measured']:.4g} = {v['ratio']:.2f}"
                    for k, v in found[name][-1].items()
                    if isinstance(v, dict)
                },
                flush=True,
            )
            save(found)  # what there is, should it be stopped
