"""Build the site into _docs/: nbdev prepares the notebooks in _proc/, Quarto turns them into pages.

nbdev's own nbdev_docs would try to install Quarto with sudo; this says how to get it and stops instead.
"""
import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs


def main():
    cfg = get_config()
    refresh_quarto_yml()  # nbs/nbdev.yml: title, addresses and folders from settings.ini
    proc = Path(proc_nbs(force=True))
    print(f"prepared {len(list(proc.rglob('*.ipynb')))} notebooks in {proc.name}/")
    if not shutil.which("quarto"):
        return ("The pages were not built: Quarto is not on the PATH.\n"
                "Get it from https://quarto.org/docs/get-started (any release from 1.5 on; a plain unpacked archive will do), then run `make docs` again.")
    subprocess.run(["quarto", "render", "--no-cache"], cwd=proc, check=True)
    docs = Path(cfg.doc_path)
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc / docs.name, docs)
    print(f"the site is in {docs.name}/index.html")


if __name__ == "__main__":  # nbdev starts worker processes that import this file again
    sys.exit(main())
