"""What a newcomer's first hour costs: a fresh clone, `make` its environment, `make test`, `make demo`,
each timed; writes results/setup.json.

    python tools/measure.py [--only install test demo] [--keep FOLDER]

With --keep the clone stays in FOLDER, and a later call brings it up to date and measures what it is asked
to; results/setup.json keeps the rest.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def timed(command, cwd, env):
    "(minutes, output) of a command; ends this script if it fails."
    start = time.perf_counter()
    run = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed in {cwd}:\n{run.stdout[-4000:]}")
    return round((time.perf_counter() - start) / 60, 1), run.stdout


def folder_gb(path):
    return round(
        sum(f.lstat().st_size for f in Path(path).rglob("*") if f.is_file() and not f.is_symlink()) / 1e9, 2
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "--only", nargs="*", default=["install", "test", "demo"], choices=["install", "test", "demo"]
    )
    p.add_argument("--keep", help="clone into this folder, leave it there and use it again")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        clone = Path(a.keep or f"{tmp}/sgmim")
        if (clone / ".git").is_dir():
            subprocess.run(["git", "pull", "-q"], cwd=clone, check=True)
        else:
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")} | {
            "SGMIM_CACHE": f"{tmp}/cache"
        }
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True
        ).stdout.strip()
        path = ROOT / "results/setup.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        found |= {
            "measured_on": (
                f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
            ),
            "command": "python tools/measure.py",
        }
        if "install" in a.only:
            found["install_minutes"], _ = timed(["make", ".venv/.installed"], clone, env)
            found["install_gb"], found["install_commit"] = folder_gb(clone / ".venv"), commit
        if "test" in a.only:
            found["test_minutes"], out = timed(["make", "test"], clone, env)
            found["test_commit"], found["test_result"] = commit, re.findall(r"=+ (.*passed.*) =+", out)[-1]
        if "demo" in a.only:
            found["demo_minutes"], out = timed(["make", "demo"], clone, env)
            found["demo_commit"] = commit
            record = json.loads((clone / "runs/demo/demo.json").read_text())
            found["demo_memory_gb"], found["demo_disk_gb"] = (
                round(record["peak_memory_mb"] / 1024, 1),
                round(folder_gb(f"{tmp}/cache") + folder_gb(clone / "runs"), 2),
            )
            path.parent.mkdir(exist_ok=True)
            (ROOT / "results/demo.json").write_text((clone / "runs/demo/demo.json").read_text())
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
