"""What a newcomer's first hour costs: a fresh clone, `make` its environment, `make app` until its page is
served, `make test`, `make demo`, each timed; writes results/setup.json.

    python tools/measure.py [--only install app test demo] [--keep FOLDER] [--make CPU=0]

With --keep the clone stays in FOLDER, and a later call brings it up to date and measures what it is asked
to; results/setup.json keeps the rest. The installation is recorded by the kind of its PyTorch, cpu or cuda.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def minutes_since(start):
    return round((time.perf_counter() - start) / 60, 1)


def timed(command, cwd, env):
    "(minutes, output) of a command; ends this script if it fails."
    start = time.perf_counter()
    run = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed in {cwd}:\n{run.stdout[-4000:]}")
    return minutes_since(start), run.stdout


def folder_gb(path):
    return round(
        sum(f.lstat().st_size for f in Path(path).rglob("*") if f.is_file() and not f.is_symlink()) / 1e9, 2
    )


def install(clone, env, make):
    minutes, _ = timed(["make", ".venv/.installed", *make], clone, env)
    asked = "import torch; print(torch.__version__)"
    torch = subprocess.check_output([clone / ".venv/bin/python", "-c", asked], text=True).strip()
    kind = "cpu" if "+cpu" in torch else "cuda"
    found = {"minutes": minutes, "gb": folder_gb(clone / ".venv"), "torch": torch}
    uv = {k: v for k, v in env.items() if k.startswith("UV_")}  # other sources than uv's own
    return {f"install_{kind}": found | {"make": make, "environment": sorted(uv)}}


def app(clone, env, make):
    "`make app` installs Gradio first."
    start = time.perf_counter()
    run = subprocess.Popen(
        ["make", "app", *make], cwd=clone, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed = next((line for line in run.stdout if "pictures at http" in line), None)
        if not printed:
            sys.exit(f"make app failed in {clone}")
        return {"app_minutes": minutes_since(start)}
    finally:
        os.killpg(run.pid, signal.SIGINT)
        run.wait(60)


def test(clone, env, make):
    minutes, out = timed(["make", "test", *make], clone, env)
    steps = {name: int(s) for name, s in re.findall(r"^== (\w+): (\d+) s$", out, re.MULTILINE)}
    passed = re.findall(r"=+ (.*passed.*) =+", out)[-1]
    return {"test_minutes": minutes, "test_seconds": steps, "test_result": passed}


def demo(clone, env, make):
    minutes, _ = timed(["make", "demo", *make], clone, env)
    record = (clone / "runs/demo/demo.json").read_text()
    (ROOT / "results/demo.json").write_text(record)
    disk = folder_gb(env["SGMIM_CACHE"]) + folder_gb(clone / "runs")
    memory = json.loads(record)["peak_memory_mb"] / 1024
    return {"demo_minutes": minutes, "demo_memory_gb": round(memory, 1), "demo_disk_gb": round(disk, 2)}


STEPS = {"install": install, "app": app, "test": test, "demo": demo}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--only", nargs="*", default=list(STEPS), choices=STEPS)
    p.add_argument("--keep", help="clone into this folder, leave it there and use it again")
    p.add_argument("--make", nargs="*", default=[], help="variables for make, such as CPU=0")
    a = p.parse_args()
    path = ROOT / "results/setup.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    with tempfile.TemporaryDirectory() as tmp:
        clone = Path(a.keep or f"{tmp}/sgmim")
        if (clone / ".git").is_dir():
            subprocess.run(["git", "pull", "-q"], cwd=clone, check=True)
        else:
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
        env |= {"SGMIM_CACHE": f"{tmp}/cache", "UV_NO_CACHE": "1"}
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=clone, text=True).strip()
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        found |= {"measured_on": machine, "command": "python tools/measure.py"}
        for step in (s for s in STEPS if s in a.only):
            found |= {**STEPS[step](clone, env, a.make), f"{step}_commit": commit}
            path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
