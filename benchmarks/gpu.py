"""Everything that a GPU is asked, within nine minutes and without a network: python benchmarks/gpu.py
[--out FOLDER] [--device cpu --tiny]

Each part runs in a process of its own with a time limit; one that fails or takes too long is reported, and
the next one begins. `--device cpu --tiny` tries the script without a GPU, in small.
Records and logs go to FOLDER (default: gpu-records), with a summary in summary.json; records named
bench-*-cuda.json are for results/, where the pages look for them.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sgmim.core import code_version, pick_device, write_json

ROOT = Path(__file__).resolve().parents[1]
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--out", type=Path, default=Path("gpu-records"))
p.add_argument("--device", default="cuda")
p.add_argument("--tiny", action="store_true")
p.add_argument("--minutes", type=float, default=9.0)
a = p.parse_args()
device, folder = pick_device(a.device), a.out.resolve()
folder.mkdir(parents=True, exist_ok=True)


def bench(name, *args, out=None):
    return [
        sys.executable,
        str(ROOT / "benchmarks" / f"{name}.py"),
        "--device",
        str(device),
        "--out",
        str(folder / f"bench-{out or name}{'-cuda' if device.type == 'cuda' else ''}.json"),
        *args,
    ]


small = ["--tiny", "--pairs", "4", "--seconds", "2", "--threads", "1"] if a.tiny else []
PARTS = {  # name: (command, seconds at most)
    "tests": ([sys.executable, "-m", "pytest", "-q", "-m", "cuda", str(ROOT / "tests")], 90),
    "step": (bench("step", *small, "--steps", "3"), 120),
    "compiled": (
        bench("step", *small, "--steps", "3", "--compile", "--variants", "summary", out="step-compiled"),
        240 if a.tiny else 70,
    ),
    "growth": (
        bench(
            "growth",
            *(
                ["--tiny", "--pairs", "2", "4", "8", "--seconds", "1", "2"]
                if a.tiny
                else ["--pairs", "16", "32", "64", "128", "--seconds", "4", "8"]
            ),
            "--captions",
            "10000",
            "100000",
            "--steps",
            "2",
        ),
        130,
    ),
    "precision": (
        bench(
            "precision",
            *(
                ["--images", "64", "--epochs", "1", "--seeds", "1"]
                if a.tiny
                else ["--images", "1500", "--epochs", "4", "--seeds", "1"]
            ),
        ),
        120,
    ),
}
began, summary = time.perf_counter(), {}
# of torch.compile: a part that is stopped may leave files that are cut short, which the next run must not
# find
cache = tempfile.mkdtemp()
for name, (command, limit) in PARTS.items():
    left = 60 * a.minutes - (time.perf_counter() - began)
    if left < 15:
        summary[name] = {"result": "not begun: no time left"}
        continue
    start = time.perf_counter()
    with open(folder / f"{name}.log", "w") as log:
        part = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "HF_HUB_OFFLINE": "1",
                "TORCHINDUCTOR_CACHE_DIR": cache,
            },
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            result = part.wait(min(limit, left))
        except subprocess.TimeoutExpired:
            # with the processes it has begun, which hold memory of the GPU
            os.killpg(part.pid, signal.SIGKILL)
            part.wait()
            result = f"stopped after {min(limit, left):.0f} s"
    lines = (folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
    # pytest's 5: no such tests here
    ok = result == 0 or (name == "tests" and result == 5 and device.type == "cpu")
    summary[name] = {
        "result": "done" if ok else result,
        "seconds": round(time.perf_counter() - start, 1),
        "last_line": lines[-1][:300] if lines else "",
    }
    print(f"{name}: {summary[name]}", flush=True)
    write_json(folder / "summary.json", {"parts": summary, "code": code_version(), "device": str(device)})
failed = [n for n, s in summary.items() if s["result"] != "done"]
print("all done" if not failed else f"not done: {', '.join(failed)}; the logs are in {a.out}")
raise SystemExit(bool(failed))
