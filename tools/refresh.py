"""Run notebooks in place so that their outputs and figures are stored, then clean them.

    python tools/refresh.py                      every notebook
    python tools/refresh.py models/00_patches index     those whose path ends so (with or without .ipynb)
    python tools/refresh.py --slow training/10_train      the slow cells too

Cells marked `#| slow`, `#| cuda` (tst_flags in settings.ini) or `#| eval: false` are not run and keep the
outputs they have. Widgets (their ids change with every run), scripts and stderr (warnings, progress bars)
are never stored. A notebook is written only if every cell ran. Each notebook has a Python process of its
own, so that none sees what another left behind.
"""

import argparse
import configparser
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIVE = {"application/vnd.jupyter.widget-view+json", "application/javascript"}


def skip_flags(slow):
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return set(ini["DEFAULT"]["tst_flags"].split()) - ({"slow"} if slow else set())


def skipped(cell, flags):
    "Whether `cell` is left alone: no code, marked with one of `flags`, or never to be run."
    if cell.cell_type != "code":
        return True
    marks = {m.strip() for m in re.findall(r"^\s*#\s*\|\s*(.+)$", cell.source, re.M)}
    return bool(flags & {m.split()[0] for m in marks}) or any(
        re.fullmatch(r"eval:\s*false", m, re.I) for m in marks
    )


def keep(output):
    "Whether an output is worth storing."
    return not LIVE & output.get("data", {}).keys() and output.get("name") != "stderr"


def run(path, flags):
    "Run the notebook at `path` in this process and write it back."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell

    sys.path.insert(0, str(ROOT))
    os.chdir(path.parent)
    notebook, shell = read_nb(path.name), CaptureShell()

    def before(cell):
        if skipped(cell, flags):
            return True
        cell.outputs = []  # a cell that no longer prints must not keep its old output

    def after(cell):
        cell.outputs = [o for o in cell.outputs if keep(o)]

    try:
        shell.run_all(notebook, exc_stop=True, preproc=before, postproc=after)
    except Exception:
        sys.exit(shell.prettytb(fname=path))
    notebook.metadata.pop("widgets", None)
    write_nb(notebook, path.name)


def chosen(names):
    "Notebooks whose path under nbs/ ends in one of `names`; all of them if there are none."
    every = sorted(
        p
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if not any(part[0] in "_." for part in p.relative_to(ROOT).parts)
    )
    if not names:
        return every
    found = []
    for name in names:
        stem = re.sub(r"^(\./)?(nbs/)?|\.ipynb$", "", name)
        hits = [p for p in every if f"/{p.relative_to(ROOT).with_suffix('').as_posix()}".endswith(f"/{stem}")]
        found += hits or sys.exit(
            f"no notebook under nbs/ is called {name!r}; there are: {', '.join(p.stem for p in every)}"
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--slow", action="store_true", help="run the cells marked slow too")
    # how this script calls itself for one notebook
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run(args.one, skip_flags(args.slow))
        sys.exit()
    failed = []
    for path in chosen(args.notebooks):
        start = time.time()
        command = [sys.executable, __file__, "--one", str(path)] + ["--slow"] * args.slow
        # IN_TEST is what nbdev_test sets: it keeps a notebook from exporting while it runs
        if subprocess.run(command, env={**os.environ, "IN_TEST": "1"}).returncode:
            failed.append(path.stem)
        else:
            clean = "from nbdev.clean import nbdev_clean; nbdev_clean()"
            subprocess.run([sys.executable, "-c", clean, "--fname", str(path)], cwd=ROOT, check=True)
            print(f"{path.relative_to(ROOT)}: {time.time() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed, and left as they were: {', '.join(failed)}")
