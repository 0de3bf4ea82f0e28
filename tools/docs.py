"""Build the site into _docs/: nbdev prepares the notebooks in _proc/, which are then checked, and Quarto
turns them into pages.

    python tools/docs.py              everything (needs Quarto)
    python tools/docs.py --prepare    up to the check

nbdev's own nbdev_docs would try to install Quarto with sudo; this says how to get it and stops instead.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bs4 import BeautifulSoup

sys.path.insert(0, str(Path(__file__).resolve().parent))
import apidoc
import checks
import llms
import readme

joined = readme.joined


def prepare():
    """Run nbdev's processing; the folder of the notebooks that Quarto is to render. Every exported cell
    and every cell that imports is run."""
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    refresh_quarto_yml()  # nbs/nbdev.yml: title, addresses and folders from settings.ini
    proc = Path(proc_nbs(force=True))
    apidoc.improve(get_config().config_path, proc)
    return proc


def documented(root, path):
    """Names of the functions and classes that notebook `path` exports and nbdev documents: those without
    an underscore, in cells that are not hidden."""
    return [
        node.name
        for marks, tree in checks.code_cells(root, path)
        if tree and {"export", "exports"} & marks.keys() and checks.is_shown(marks)
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
    ]


def written(cell):
    "What a processed cell shows as Markdown: its text, or the Markdown among its outputs."
    if cell["cell_type"] == "markdown":
        return [joined(cell["source"])]
    return [
        joined(out["data"]["text/markdown"])
        for out in cell.get("outputs", [])
        if "text/markdown" in out.get("data", {})
    ]


def bare(text):
    "Markdown without links, code marks and white space: nbdev turns `name` into a link."
    return re.sub(r"\]\([^)]*\)|[\[\]`]|\s+", "", text)


def problems(root, proc):
    """What is wrong with the processed notebooks `proc` of the project `root`: pages, prose, figures or
    documented names missing, errors, links that lead nowhere."""
    root, proc, found = Path(root), Path(proc), []
    pages, cfg = checks.notebooks(root), checks.settings(root)
    home = cfg["doc_host"] + cfg["doc_baseurl"]
    there = {p.relative_to(proc) for p in proc.rglob("*.ipynb")}
    found += [f"{p} was not processed" for p in sorted(set(pages) - there)] + [
        f"{p} is of no notebook" for p in sorted(there - set(pages))
    ]
    # the project once more, with what the pages say as its notebooks, so that the check of links sees that
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        shutil.copytree(
            root, site, ignore=shutil.ignore_patterns(".*", "_proc", "_docs", "runs", "__pycache__", "*.md")
        )
        for path in set(pages) & there:
            cells = json.loads((proc / path).read_text(encoding="utf-8"))["cells"]
            front = next((joined(c["source"]) for c in cells if c["cell_type"] == "raw"), "")
            if not re.search(r"^title: \S", front, re.M) or not re.search(r"^description: \S", front, re.M):
                found.append(f"{path} has no title or no description")
            if any(out["output_type"] == "error" for c in cells for out in c.get("outputs", [])):
                found.append(f"{path} shows an error")
            texts = [text for c in cells for text in written(c)]
            found += [f"{path} shows {bad!r}" for t in texts for bad in apidoc.untidy(t, home)]
            prose = [joined(c["source"]) for c in checks.cells(root, path, "markdown")]
            whole = bare("".join(texts))
            # title and subtitle have become settings of the page
            prose[:1] = re.sub(r"^# .*\n\n> .*", "", prose[0], count=1).split("\n\n") if prose else []
            found += [
                f"{path} has lost what begins with {text.strip()[:50]!r}: give title and subtitle a cell of"
                " their own"
                for text in prose
                if bare(text) not in whole
            ]
            heads = set(re.findall(r"^#{2,} (\w+)\s*$", "\n".join(texts), re.M))
            found += [
                f"{path} does not document {name}" for name in documented(root, path) if name not in heads
            ]

            def alts(cells):
                return {
                    m
                    for c in cells
                    if checks.images(c)
                    for m in re.findall(r"^#\s*\|\s*fig-alt:.*", joined(c["source"]), re.M)
                }

            shown = [
                c
                for c in checks.cells(root, path, "code")
                if checks.is_shown(marks := readme.directives(joined(c["source"]))[0])
                and checks.is_shown(marks, "output")
            ]
            found += [
                f"{path} has lost a figure or its text: {alt[:70]}"
                for alt in sorted(alts(shown) - alts(cells))
            ]
            copy = {"cells": [{"cell_type": "markdown", "source": text} for text in texts]}
            (site / "nbs" / path).write_text(json.dumps(copy), encoding="utf-8")
        for file in root.rglob("*.md"):
            if not any(part[0] in "._" for part in file.relative_to(root).parts):
                (site / file.relative_to(root)).write_text(
                    file.read_text(encoding="utf-8") if file.parent == root else "", encoding="utf-8"
                )
        found += [p for p in checks.links(site) if p.startswith("nbs/")]
    return sorted(found)


def rendered_problems(pages):
    "What is wrong with the HTML pages in a folder: Markdown that was not rendered, files of other sites."
    found = []
    for path in sorted(pages.rglob("*.html")):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        loaded = page.select("script[src], img[src], link[rel~=stylesheet]")
        files = [tag.get("src") or tag.get("href") for tag in loaded]
        found += [f"{path.name} loads {file}" for file in files if file.startswith(("http", "//"))]
        for tag in page(["script", "style", "pre", "code"]):
            tag.decompose()
        raw = re.findall(r"\S*\]\((?:http|\.\.?/|#)\S*", page.get_text())
        found += [f"{path.name} shows {text!r}" for text in raw]
    return found


def main(args):
    if args != ["--prepare"] and not shutil.which("quarto"):
        return (
            f"{sys.argv[0]}: Quarto is not on the PATH; install it from https://quarto.org/docs/get-started"
        )
    from nbdev.config import get_config

    started = time.perf_counter()
    cfg, proc = get_config(), prepare()
    print(f"prepared {len(list(proc.rglob('*.ipynb')))} notebooks in {proc.name}/")
    if bad := problems(cfg.config_path, proc):
        return "The pages are not fit to be built:\n" + "\n".join(f"- {p}" for p in bad)
    if args == ["--prepare"]:
        return
    subprocess.run(["quarto", "render", "--no-cache"], cwd=proc, check=True)
    docs = Path(cfg.doc_path)
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc / docs.name, docs)
    (docs / "llms.txt").write_text(llms.listing(cfg.config_path), encoding="utf-8")
    if bad := rendered_problems(docs):
        return "The pages are built, but not as they should be:\n" + "\n".join(f"- {p}" for p in bad)
    print(f"the site is in {docs.name}/index.html; built in {(time.perf_counter() - started) / 60:.1f} min")


if __name__ == "__main__":  # nbdev starts worker processes that import this file again
    sys.exit(main(sys.argv[1:]))
