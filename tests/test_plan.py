"""The planner's arithmetic against sums by hand and against shapes computed for real; its command; the
cluster's scripts with a pretended SLURM; two processes by the command line. No clock decides here:
plans against real runs are benchmarks/plan.py."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS, Toy, micro

from sgmim.apps.commands import run_command
from sgmim.core import ConfigError, config_to_dict, read_json
from sgmim.data.batches import Order
from sgmim.models.sgmim import SGMIM, table4_rows
from sgmim.models.systems import PRESETS
from sgmim.paper.records import check_record
from sgmim.train import TrainConfig
from sgmim.training import plan as P
from sgmim.training.feed import Feed
from sgmim.training.step import make_optimiser

QUICK = TrainConfig(
    epochs=4.0, batch_size=8, optimiser="adamw", max_seconds=0.4, eval_seconds=0.4, augment="none", amp="off"
)
MACHINE = P.Cost(
    "a toy",
    fixed=0.01,
    before=0.005,
    after=0.008,
    image=0.002,
    caption=0.003,
    decode=0.001,
    bytes_fixed=1e9,
    bytes_pair=2e6,
    bytes_saving=4e7,
    cpu=1.0,
)


def device(memory, link=math.inf):
    return P.Device(1e12, 1e12, memory, link)


# ---- counted from shapes


@pytest.mark.parametrize(
    "row",
    [
        "VG-HuBERT (M)",
        pytest.param("+ Recon", marks=pytest.mark.slow),
        pytest.param("+ Speech-Guided", marks=pytest.mark.slow),
        "+ Summary",
    ],
)
def test_shapes_say_what_numbers_do(row):
    c = table4_rows(micro(dropout=0.0))[row]
    found, real = P.shape_cost(c, 0.4), P.pair_flops(c, QUICK)
    assert np.allclose(found["flops"], real, rtol=0.05) and (found["flops"][0] == found["flops"][1]) == (
        c.reconstruction == "none"
    )
    net = SGMIM(c).train()
    assert P.parameter_counts(c)["all"] == (
        sum(p.numel() for p in net.parameters() if p.requires_grad),
        sum(p.numel() for p in net.parameters()),
    )
    kept = []
    for n in (4, 8):
        with P._kept_bytes(net) as sizes:
            net(P._noise(net, n, 0.4, "cpu"))["loss"].backward()
        kept.append(sum(sizes.values()))
    assert 0.7 < found["kept"] / ((kept[1] - kept[0]) / 4) < 1.3
    assert 0 < found["image_flops"] + found["caption_flops"] < 0.5 * found["flops"][0]


@pytest.mark.slow
def test_a_full_size_model_is_counted_without_being_made():
    found = P.shape_cost(PRESETS["paper-spokencoco"](), 8.0)
    assert (
        P.parameter_counts(PRESETS["paper-spokencoco"]())["all"] == (187_197_312, 277_196_416)
        and 4e11 < found["flops"][0] < found["flops"][1] < 6e11
        and 5e8 < found["kept"] < 1e9
    )
    assert 0.3 < (found["image_flops"] + found["caption_flops"]) / found["flops"][0] < 0.4  # FORWARD


def test_half_precision_is_cheaper():
    c, t, d = micro(), replace(QUICK, amp="auto"), P.DEVICES["a100"]
    half, full = P.modelled(c, t, d), P.modelled(c, replace(t, amp="off"), d)
    assert (
        math.isclose(full.after / half.after, d.bf16 / d.fp32)
        and half.bytes_pair < full.bytes_pair
        and half.image == full.image
    )
    assert math.isclose(P.modelled(c, t, d, utilisation=0.2).after, 2 * half.after)


# ---- from measurements to a plan


def test_costs_come_back_from_their_steps():
    def step(n, k):
        return (k, 0.01 + n * (0.005, 0.008)[k], 0.02 + 2 * n * (0.005, 0.008)[k])

    peaks = [[n, 1e9 + 2e6 * n] for n in (20, 64)]
    sizes = [{"pairs": n, "steps": [step(n, k) for k in (0, 1)] * 2} for n in (16, 32)]
    parts = [{"reconstruct": False}, {"reconstruct": True}]
    found = P.fit_cost({"peaks": peaks, "sizes": sizes, "image": 0.002, "caption": 0.003}, parts, 0.001, 4e7)
    for k, v in vars(MACHINE).items():
        if k not in ("how", "cpu"):
            assert math.isclose(getattr(found, k), v, rel_tol=1e-9), k
    assert math.isclose(found.cpu, 2) and found.how == "measured here"
    varied = [{"reconstruct": False, "lengths": [[1], [2]]}, {"reconstruct": True, "lengths": [[2]]}]
    held, cuda = (
        P.fit_cost({"peaks": peaks, "sizes": sizes, "image": 0, "caption": 0, "cuda": c}, varied)
        for c in (False, True)
    )
    assert all(
        math.isclose(getattr(held, k), P.HELD * getattr(found, k))
        and math.isclose(getattr(cuda, k), getattr(found, k))
        for k in ("bytes_fixed", "bytes_pair")
    )
    one = P.fit_cost({"peaks": peaks[-1:] * 2, "sizes": sizes[-1:], "image": 0, "caption": 0}, parts)
    assert one.fixed == 0 and math.isclose(one.after, 0.01 / 32 + 0.008) and one.bytes_pair == 0


@pytest.mark.parametrize("small", [0.0, 0.9, 5.0])
def test_noise_does_not_make_nonsense(small):
    peaks = [[8, 1e9], [16, 0.9e9]]
    sizes = [{"pairs": n, "steps": [(0, t, t)]} for n, t in ((8, small), (16, 1.0))]
    found = P.fit_cost({"peaks": peaks, "sizes": sizes, "image": 0, "caption": 0}, [{"reconstruct": False}])
    assert (
        found.bytes_pair == 0
        and found.fixed >= 0
        and math.isclose(found.fixed + 16 * found.after, 1.0)
        and 0.5 / 16 <= found.after <= 1 / 16
        and found.before == found.after
    )


@pytest.mark.parametrize("changes", [{}, {"bucket": 4, "curriculum": 0.3}, {"bucket": 4, "speed": 0.12}])
def test_a_training_costs_what_its_plan_says(changes):
    """On a machine whose steps cost a known amount, by the padded length of the batch: the sum over all
    steps of a real order against the plan from a few."""
    model, train = micro(mim_onset=1.0), replace(QUICK, **changes)
    feed = Feed(Toy(300), train, 0, model)

    def costs(lengths, reconstruct):
        return 0.01 + len(lengths) * (1e-3 + 1e-6 * max(lengths) * (1 + reconstruct))

    parts = P._step_lengths(feed, model)
    assert [p["reconstruct"] for p in parts] == [False, True] and all(
        len(p["lengths"]) == 4 and max(p["longest"]) >= max(map(max, p["lengths"])) for p in parts
    )
    peaks = [[4, 0], [8, 0]]
    sizes = [
        {
            "pairs": n,
            "steps": [
                (k, *2 * (costs([x[int(i)] for i in np.linspace(0, len(x) - 1, n)], p["reconstruct"]),))
                for k, p in enumerate(parts)
                for x in p["lengths"]
            ],
        }
        for n in (4, 8)
    ]
    cost = P.fit_cost({"peaks": peaks, "sizes": sizes, "image": 0, "caption": 0}, parts)
    made = P.make_plan(cost, model, train, P.Workload(len(feed.pairs)))
    order, onset = Order(feed.pairs.lengths, 8, feed.steps, 0, train.bucket, train.curriculum), feed.per_epoch
    real = sum(
        costs(P._played_lengths(feed.pairs.lengths[order[s]], train), s >= onset) for s in range(feed.steps)
    )
    assert made.steps == feed.steps and abs(3600 * made.hours_compute / real - 1) < 0.05


def test_a_plan_by_hand():
    train = TrainConfig(batch_size=10, epochs=4.0, eval_every=2.0)
    work = P.Workload(1005, 100, 200)
    model = micro(mim_onset=1.0)
    f = P.make_plan(MACHINE, model, train, work, device(1.1e9), workers=0)
    assert (f.steps, f.per_epoch) == (400, 100) and f.fits and f.largest == 22
    assert (
        math.isclose(3600 * f.hours_compute, 100 * 0.06 + 300 * 0.09)
        and math.isclose(3600 * f.hours_decoding, 4000 * 0.001)
        and math.isclose(3600 * f.hours_evaluation, 2 * (0.2 + 0.6))
    )
    assert math.isclose(f.hours, f.hours_compute + f.hours_decoding + f.hours_evaluation)
    assert f.parameters["all"] == P.parameter_counts(model)["all"]
    behind = P.make_plan(MACHINE, model, train, work, workers=1)
    assert math.isclose(behind.hours, f.hours_compute + f.hours_evaluation) and behind.fits
    never = P.make_plan(MACHINE, micro(mim_onset=9.0), train, P.Workload(1005))
    assert math.isclose(3600 * never.hours_compute, 400 * 0.06) and math.isclose(never.seconds, 0.06)
    with pytest.raises(ConfigError, match="9 pairs do not fill one batch of 10"):
        P.make_plan(MACHINE, micro(), train, P.Workload(9))


def test_an_opened_corpus_is_a_workload():
    model, data = micro(), Toy(40)
    feed = Feed(data, QUICK, 0, model)
    work = P.open_workload(feed, model, {"a": Toy(16, 2), "b": Toy(8)}, P.resident_bytes())
    assert (work.pairs, work.images, work.captions) == (40, 24, 40)
    assert work.steps == P._step_lengths(feed, model) and 0 < work.decode < 1
    assert math.isclose(work.seconds, float(feed.pairs.lengths.mean()) / 16_000)
    assert work.held >= P._image_cache_bytes(feed) > 0 and P.open_workload(feed, model).held == 0


def test_no_more_is_measured_than_fits(monkeypatch):
    model = micro()
    kept = P.shape_cost(model, QUICK.max_seconds)["kept"]
    for memory, micro_batch, most in ((None, 0, 8), (10 * kept, 0, 5), (10 * kept, 3, 3), (1, 0, 2)):
        monkeypatch.setattr(P, "_memory_of", lambda device, memory=memory: memory)
        assert P.steps_to_take(model, replace(QUICK, micro_batch=micro_batch))["pairs"] == most


def test_what_to_do_where_it_does_not_fit():
    def say(memory, devices=1, **changes):
        train = TrainConfig(**{"batch_size": 100, **changes})
        made = P.make_plan(MACHINE, micro(), train, P.Workload(10**4), device(memory, 1e9), devices)
        return str(made).splitlines()[-1]

    assert say(1.3e9) == "fits: up to 117 pairs at a time per device"
    assert (
        say(1.2e9)
        == "DOES NOT FIT: 100 pairs at a time, but 69 would; set micro_batch=69, which takes about a third"
        " longer, or use 2 devices"
    )
    assert (
        say(1.2e9, micro_batch=50) == "fits: up to 69 pairs at a time per device, so micro_batch=50 is needed"
    )
    assert say(1.2e9, devices=2).startswith("fits")
    assert "checkpoint" in say(1.09e9, batch_size=2) and "larger device" in say(1e9)


def test_exchange_grows_with_the_ring():
    two, many = (P.exchange_bytes(64, 128, 1000, n) for n in (2, 1000))
    assert two == {"embeddings": 3 * 64 * 128 * 4, "gradients": 4000} and math.isclose(
        many["gradients"], 8000 * 0.999
    )


def test_steps_are_really_taken():
    model, train = micro(), replace(QUICK, batch_size=6)
    spec = {
        "system": "sgmim",
        "model": config_to_dict(model),
        "train": config_to_dict(train),
        "device": "cpu",
        "threads": 0,
        "pairs": 6,
        "seconds": 0.01,
        "caption_seconds": 0.3,
        "parts": [
            {"reconstruct": False, "lengths": [[2000] * 6]},
            {"reconstruct": True, "lengths": [[2000] * 6, [3000] * 6]},
        ],
    }
    found = json.loads(json.dumps(P.take_steps(spec)))
    assert (
        [s["pairs"] for s in found["sizes"]] in ([2, 4], [3, 6])
        and 2 <= found["peaks"][0][0] < found["peaks"][1][0] <= 6
        and 0 < found["peaks"][0][1] <= found["peaks"][1][1]
        and [s[0] for s in found["sizes"][0]["steps"]][:3] == [0, 1, 1]
    )
    cost = P.fit_cost(found, spec["parts"])
    assert 0 < cost.after < 10 and cost.bytes_fixed > 1e7 and cost.image > 0 and cost.caption > 0


@pytest.mark.slow
def test_what_saving_takes():
    "Three times the checkpoint, in memory (`_SAVING`)."
    if not os.path.exists("/proc/self/status"):
        pytest.skip(
            "needs /proc: the highest memory that getrusage gives is inherited from the process that started"
            " this one"
        )
    code = (
        "import re, tempfile, torch\nfrom sgmim.core import save_checkpoint\nt = {str(k):"
        " torch.ones(2_500_000) for k in range(30)}\nrss = lambda: int(re.search(r'VmHWM:\\s+(\\d+)',"
        " open('/proc/self/status').read())[1])\na = rss()\nwith tempfile.TemporaryDirectory() as f:"
        " save_checkpoint(f, t, {})\nprint((rss() - a)*1024/300e6)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert 0.8 * P._SAVING < float(done.stdout) < 1.2 * P._SAVING, done.stderr
    model = SGMIM(micro())
    optimiser = make_optimiser(model, QUICK)
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimiser.step()
    held = sum(v.nbytes for v in model.state_dict().values()) + sum(
        v.nbytes for s in optimiser.state.values() for v in s.values() if torch.is_tensor(v)
    )
    assert abs(P._snapshot_bytes(*P.parameter_counts(model.config)["all"]) / held - 1) < 0.05


# ---- the command


@pytest.mark.slow
def test_sgmim_plan(capsys, tmp_path):
    assert (
        run_command(
            "sgmim_plan",
            ["--preset", "paper-places", "--device", "l4", "--record", str(tmp_path / "plan.json")],
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "at 40% of its published rate" in said
        and "modelled" in said
        and "DOES NOT FIT: 80 pairs at a time" in said
    )
    record = read_json(tmp_path / "plan.json")
    assert (
        not check_record(record)
        and record["metrics"]["forecast"]["per_epoch"] == 5000
        and not record["metrics"]["forecast"]["fits"]
    )
    assert (
        run_command(
            "sgmim_plan",
            [
                "--preset",
                "paper-facc",
                "--device",
                "h200",
                "--pairs",
                "1000",
                "--set",
                "epochs=1",
                "--devices",
                "2",
            ],
        )
        == 0
    )
    assert "steps: 10 of 100 pairs, 10 per epoch, on 2 devices (modelled)" in capsys.readouterr().out
    for args, why in (
        (["--device", "h900"], "'h900'"),
        (["--device", "h100", "--calibrate"], "measures this machine"),
        (["--pairs", "50", "--preset", "paper-facc"], "do not fill one batch"),
    ):
        assert run_command("sgmim_plan", args) == 1 and why in capsys.readouterr().err


@pytest.mark.slow
def test_a_corpus_is_planned_by_its_lengths(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SGMIM_CACHE", str(tmp_path / "cache"))
    assert (
        run_command(
            "sgmim_scenes",
            [
                "train=20",
                "dev=20",
                "--captions",
                "2",
                "--export",
                "spokencoco",
                "--out",
                str(tmp_path / "coco"),
            ],
        )
        == 0
    )
    capsys.readouterr()
    args = ["--data", str(tmp_path / "coco"), "--set", "epochs=2", "batch_size=8"]
    assert run_command("sgmim_plan", [*args, "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "steps: 10 of 8 pairs, 5 per epoch" in said and "modelled" in said
    # a training says the same
    dry = ["--dry-run", "--no-calibration", "--device", "cpu", "--workers", "0"]
    for name, value in (("this_machine", device(1e12)), ("decoding_seconds", 1e-3), ("resident_bytes", 0)):
        monkeypatch.setattr(P, name, lambda *args, value=value: value)
    assert run_command("sgmim_plan", [*args, "--workers", "0"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert run_command("sgmim_train", [*args, *dry, "--out", str(tmp_path / "run")]) == 0
    trained = [re.sub(r" \([^()]* free\)$", "", line) for line in capsys.readouterr().out.splitlines()]
    assert trained[0] == "Needs" and trained[trained.index(planned[0]) :] == planned
    assert "Estimate for cpu, at 40%" in said
    for line in ("Not as printed", "  image_size = 96: ours; printed: 224", "  pairs: 40"):
        assert line in planned


# ---- a cluster


def scripts():
    text = "\n".join(
        "".join(c["source"])
        for c in json.loads((ROOT / "nbs/tutorials/scaling_up.ipynb").read_text())["cells"]
    )
    return re.findall(r"```sh\n(#!/bin/bash\n.*?)```", text, re.S)


@pytest.mark.parametrize("which", [0, 1])
def test_a_job_that_is_warned_stops_its_step_and_queues_again(which, tmp_path):
    "SLURM played by three small scripts."
    (tmp_path / "job.sh").write_text(scripts()[which])
    for name, body in (
        (
            "srun",
            (
                'echo $$ > pid; echo "$@" > command; trap "echo saved >> log; exit 143" TERM; while :; do'
                " sleep .05; done"
            ),
        ),
        ("scancel", '[ "$1" = --signal=TERM ] && kill -TERM $(cat pid)'),
        ("scontrol", 'if [ $1 = show ]; then echo node1; echo node2; else echo "$@" >> log; fi'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=env)
    for _ in range(600):
        if (tmp_path / "command").exists() and (tmp_path / "command").read_text():
            break
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    assert (tmp_path / "log").read_text().split("\n")[:2] == ["saved", "requeue 7"]
    command = (tmp_path / "command").read_text()
    assert "sgmim_train --preset paper-spokencoco" in command and (
        which == 0 or "--nnodes 2" in command and "--rdzv-endpoint node1:29500 --rdzv-id 7-0" in command
    )


LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --nproc-per-node=2 --no-python",
    "accelerate": (
        "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
        " --dynamo_backend no --no_python"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_by_the_command_line(launcher, tmp_path, monkeypatch):
    "The first makes the corpus, speaks and writes; the losses are those of one process."
    if launcher == "accelerate":
        pytest.importorskip("accelerate")
    (tmp_path / "sgmim_train").write_text(
        f"#!{sys.executable}\nfrom sgmim.apps.commands import run_command\nraise SystemExit(run_command())\n"
    )
    (tmp_path / "sgmim_train").chmod(0o755)
    args = (
        "--from-scratch --images 20 --captions 1 --dev-split --workers 0 --device cpu --no-calibration"
        " --model image_depth=1 audio_depth=1 image_width=32 image_heads=2 audio_width=32 audio_heads=2"
        " audio_hidden=64 conv_dim=(8,8,8,8,8) decoder_heads=2 mim_onset=.5 --set epochs=3 batch_size=8"
        " log_every=1"
    ).split()
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS))),
        "OMP_NUM_THREADS": "1",
        "SGMIM_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *LAUNCHERS[launcher].split(),
            str(tmp_path / "sgmim_train"),
            *args,
            "--out",
            str(tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for once in ("Estimate for", "parameters to train on cpu × 2, 6 steps", "model in "):
        assert done.stdout.count(once) == 1, done.stdout
    record = read_json(tmp_path / "two/record.json")
    assert (
        record["processes"] == 2
        and record["steps"] == 6
        and not check_record(record)
        and read_json(tmp_path / "two/plan.json")["steps"] == 6
    )
    monkeypatch.setenv("SGMIM_CACHE", str(tmp_path / "cache"))
    assert run_command("sgmim_train", [*args, "--out", str(tmp_path / "one")]) == 0
    losses = [
        [
            h["loss"]
            for h in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
            if "loss" in h
        ]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 6 and np.abs(np.subtract(*losses)).max() < 1e-3
    assert "processes" not in read_json(tmp_path / "one/record.json")
