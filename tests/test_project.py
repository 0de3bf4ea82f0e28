"""The parts of the project agree with one another, and each check that says so can fail."""

import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import checks  # noqa: E402
import readme  # noqa: E402


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda c: c.__name__)
def test_project(check):
    problems = check(ROOT)
    assert not problems, "\n".join(["", *problems])


# --- the package as a user's Python sees it


def python(code, *args, **kwargs):
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, **kwargs
    )


def test_ruff():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "F", "sgmim"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_commands_import_without_torch():
    code = "import os, sys, sgmim.apps.commands; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    assert python(code).stdout.split() == ["False", "passive"]


def test_every_console_script_is_a_command():
    """`run_command` finds the function by the name of the script; `--help` lists its options without
    loading torch."""
    from sgmim.apps import commands

    scripts = dict(word.split("=") for word in checks.settings(ROOT)["console_scripts"].split())
    assert set(scripts.values()) == {"sgmim.apps.commands:run_command"}
    assert set(scripts) == {name for name in commands.__all__ if name.startswith("sgmim_")}
    code = (
        "import sys; from sgmim.apps.commands import run_command\n"
        "for name in sys.argv[1:]:\n"
        "    try: run_command(name, ['--help'])\n"
        "    except SystemExit as e: assert not e.code\n"
        "print('torch' in sys.modules)"
    )
    said = python(code, *scripts).stdout
    assert said.count("usage: sgmim_") == len(scripts) and said.endswith("False\n")
    assert said.count("--image-root") >= 7 and "--dev-split" in said


def test_import_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import sgmim; t = time.perf_counter() - t; print(t,"
        " *sorted(sys.modules))"
    )
    seconds, *loaded = python(code).stdout.split()
    heavy = {"torch", "torchvision", "transformers", "timm", "numpy", "PIL", "matplotlib"} & set(loaded)
    assert not heavy, f"`import sgmim` also imports {heavy}"
    assert float(seconds) < 0.3


# A process that has loaded what is slow to load, but nothing of sgmim, forked anew for each module, two at a
# time: whatever a notebook's unexported cells imported does not exist, and no module can lean on what another
# one loaded.
FRESH = """
import importlib, os, sys, traceback
preload, *names = sys.argv[1:]
for name in preload.split(): importlib.import_module(name)
running = {}
def reap():
    pid, status = os.wait()
    name = running.pop(pid)
    if status: print(name, flush=True)
for name in names:
    if len(running) == 2: reap()
    if (pid := os.fork()) == 0:
        try:
            assert not [m for m in sys.modules if m.split('.')[0] == name.split('.')[0]]
            exec(f'from {name} import *')  # the star also finds a name in __all__ that does not exist
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    running[pid] = name
while running: reap()
"""


def broken(names, cwd, preload=""):
    "The modules among `names` that do not import in a fresh process, and why."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FRESH, preload, *names], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.split()), done.stderr


@pytest.mark.slow
def test_every_module_imports_alone():
    names = sorted(checks.modules(ROOT))
    assert names
    bad, why = broken(
        names, ROOT, preload="torch torchvision timm transformers.models.hubert matplotlib.figure"
    )
    assert not bad, f"{bad}\n{why}"


def test_a_module_that_leans_on_its_notebook_is_found(tmp_path):
    (tmp_path / "leaning").mkdir()
    (tmp_path / "leaning/__init__.py").write_text("")
    (tmp_path / "leaning/fine.py").write_text("import math\n__all__ = ['f']\ndef f(): return math.pi\n")
    (tmp_path / "leaning/name.py").write_text("from .fine import f\nx = math.pi\n")
    (tmp_path / "leaning/missing.py").write_text("__all__ = ['g']\n")
    assert broken(["leaning.fine", "leaning.name", "leaning.missing"], tmp_path)[0] == [
        "leaning.missing",
        "leaning.name",
    ]


# --- the data manifests

MANIFESTS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "data_manifests").glob("*.json"))
}
KEYS = {
    "name",
    "kind",
    "what",
    "licence",
    "cite",
    "sources",
    "checksums",
    "layout",
    "splits",
    "splits_explained",
    "audio",
    "images",
    "protocol",
    "evidence",
    "unknown",
}
OWN = {"scenes": {"recipe", "made_by", "explained_in"}}  # what only the embedded corpus has


def faults(name, m):
    "What is wrong with the manifest `m` of the file `name`.json."
    found = [f"key {k}" for k in m.keys() ^ (KEYS | OWN.get(name, set()))]
    if found:
        return found
    found = [f"{k} is empty" for k in KEYS - {"checksums", "unknown"} if not m[k]]
    found += [f"licence of {k}" for k in ("speech", "images") if not m["licence"].get(k)]
    for entry in m["cite"]:
        found += [f"cite: {k}" for k in ("key", "type", "for", "author", "title", "year") if not entry.get(k)]
        found += [f"cite: {entry.get('key')} appeared nowhere"] * (
            not {"booktitle", "journal", "note"} & entry.keys()
        )
    for source in m["sources"]:
        found += [f"source {source.get('what')}"] * (
            source.keys() != {"what", "url", "size", "md5", "state", "checked"} or not source["state"]
        )
    for split, counts in m["splits"].items():
        found += [
            f"{split}: {k}"
            for k in ("images", "captions")
            if k not in counts or not isinstance(counts[k], int | None)
        ]
        if name not in OWN and None in (
            counts.get("images"),
            counts.get("captions"),
        ):  # what is not known has to be said, and roughly
            found += [f"{split}: not known, and not said"] * (not m["unknown"] or "about" not in counts)
    found += [
        f"audio: {k}"
        for k in m["audio"].keys() ^ {"format", "rate_hz", "channels", "bits", "hours", "speakers", "note"}
    ]
    found += [f"images: {k}" for k in m["images"].keys() ^ {"format", "captions_per_image", "note"}]
    found += [
        f"protocol: {k}"
        for k in m["protocol"].keys()
        ^ {
            "pool",
            "directions",
            "max_seconds_train",
            "max_seconds_eval",
            "select_on",
            "test_on",
        }
    ]
    found += [f"protocol: no split {s}" for s in m["protocol"].get("test_on", []) if s not in m["splits"]]
    found += ["evidence"] * any(e.keys() != {"fact", "from"} for e in m["evidence"])
    sums = [*m["checksums"].values(), *(s["md5"] for s in m["sources"] if s.get("md5"))]
    return found + [
        f"{x} is no md5" for x in sums if not (len(x) == 32 and set(x) <= set("0123456789abcdef"))
    ]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_complete(name):
    assert faults(name, MANIFESTS[name]) == []
    readme = (ROOT / "data_manifests/README.md").read_text(encoding="utf-8")
    assert f"({name}.json)" in readme and MANIFESTS[name]["name"].split(" (")[0] in readme


def test_an_incomplete_manifest_is_found():
    good = MANIFESTS["flickr8k_audio"]
    for key, bad in (
        ("unknown", None),
        ("what", ""),
        ("licence", {"speech": "x"}),
        ("cite", [{"key": "x"}]),
        ("sources", [{"what": "x"}]),
        ("splits", {"test": {"images": None, "captions": 5}}),
        ("splits", {"test": {"images": "5"}}),
        ("audio", {}),
        ("images", {}),
        ("protocol", {**good["protocol"], "test_on": ["tset"]}),
        ("evidence", [{"fact": "x"}]),
        ("checksums", {"x": "123"}),
    ):
        assert faults(
            "flickr8k_audio",
            {k: v for k, v in good.items() if k != key} if bad is None else {**good, key: bad},
        ), key


@pytest.mark.slow
def test_the_manifests_are_the_codes():
    code = """import json
from sgmim.data.check import CAPS, CHECKSUMS, EXPECTED
from sgmim.scenes.corpus import DEFAULT_RECIPE, RECIPES, SPLITS
def speakers(role):
    groups = RECIPES[DEFAULT_RECIPE].voices.get(role)
    return groups and sum(len(group) for _, group in groups)
def listed(r):
    return dict(images=None, captions=None, speakers=speakers(r.speakers),
                scene_buckets=[r.scenes.start, r.scenes.stop],
                text_buckets=[r.texts.start, r.texts.stop], held_out_combinations=r.novel)
print(json.dumps([DEFAULT_RECIPE, {n: listed(r) for n, r in SPLITS.items()}, EXPECTED, CAPS, CHECKSUMS]))"""
    recipe, splits, expected, caps, checksums = json.loads(python(code).stdout)
    scenes = MANIFESTS["scenes"]
    assert [recipe, splits] == [scenes["recipe"], scenes["splits"]]
    for path in scenes["explained_in"]:
        assert (ROOT / path).exists(), path
    official = {m["kind"]: m for name, m in MANIFESTS.items() if name not in OWN}
    assert expected == {kind: m["splits"] for kind, m in official.items()}
    assert caps == {
        kind: [m["protocol"]["max_seconds_train"], m["protocol"]["max_seconds_eval"]]
        for kind, m in official.items()
    }
    assert checksums == {kind: m["checksums"] for kind, m in official.items() if m["checksums"]}


# --- lists in CONTRIBUTING.md


def test_every_benchmark_and_requirement_is_explained():
    text, cfg = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), checks.settings(ROOT)
    listed = re.findall(r"^\| `(\w+\.py)` \| \S", text, re.M)
    assert listed == sorted(p.name for p in (ROOT / "benchmarks").glob("*.py"))
    names = [
        re.match(r"[\w-]+", word)[0]
        for key in ("requirements", "dev_requirements")
        for word in cfg[key].split()
    ]
    assert [n for n in names if f"**{n}**" not in text] == []


# --- every check can fail: a small clean project, one fault at a time


def cell(source, kind="code", outputs=()):
    base = {
        "cell_type": kind,
        "id": f"c{zlib.crc32(source.encode()):08x}",
        "metadata": {},
        "source": source.splitlines(True),
    }
    return base | ({"execution_count": None, "outputs": list(outputs)} if kind == "code" else {})


def write(root, name, *cells):
    "Store a notebook the way nbdev_clean does."
    nb = {
        "cells": list(cells),
        "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (root / "nbs" / name).write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


CORE = [
    cell("# Core\n\n> The base.", "markdown"),
    cell("## Why it is *here*\n\nSee [below](#why-it-is-here).", "markdown"),
    cell("#| default_exp core"),
    cell("#| export\ndef one(): return 1"),
    cell("one()"),
]
MORE = [
    cell("# More\n\n> On top of [core](../00_core.ipynb#one).", "markdown"),
    cell("#| default_exp data.more"),
    cell("#| export\nfrom sgmim.core import one"),
    cell("#| export\ndef two(): return one() + one()"),
]
INDEX = [
    cell("# Mini\n\n> Two modules.", "markdown"),
    cell("See [core](00_core.ipynb).", "markdown"),
    cell("#| hide\nfrom sgmim.core import one"),
]
QUARTO = """project: {type: website}
format: {html: {css: styles.css}}
website:
  navbar: {left: [{text: Start, href: index.ipynb}, {text: More, menu: [00_core.ipynb]}]}
  page-footer: {left: "[terms](https://github.com/sgmim/sgmim/blob/main/settings.ini), [why](https://sgmim.github.io/sgmim/core.html#why-it-is-here)"}
"""
SIDEBAR = (
    "website: {sidebar: {contents: [index.ipynb, {section: A, contents: [00_core.ipynb,"
    " data/00_more.ipynb]}]}}\n"
)


@pytest.fixture
def mini(tmp_path):
    for folder in ("nbs/data", ".github/workflows", "sgmim/data"):
        (tmp_path / folder).mkdir(parents=True)
    ini = (ROOT / "settings.ini").read_text()
    keep = [line for line in ini.splitlines() if "=sgmim." not in line or "sgmim_demo=" in line]
    (tmp_path / "settings.ini").write_text(
        "\n".join(keep).replace("sgmim.apps.commands:run_command", "sgmim.core:one") + "\n"
    )
    for name in (
        "pyproject.toml",
        "nbs/_quarto.yml",
        "nbs/styles.css",
        "CITATION.cff",
        "CHANGELOG.md",
        ".github/workflows/test.yaml",
        ".github/workflows/deploy.yaml",
    ):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    write(tmp_path, "00_core.ipynb", *CORE)
    write(tmp_path, "data/00_more.ipynb", *MORE)
    write(tmp_path, "index.ipynb", *INDEX)
    (tmp_path / "nbs/sidebar.yml").write_text(SIDEBAR)
    (tmp_path / "_quarto.yml").write_text(QUARTO)
    (tmp_path / "sgmim/__init__.py").write_text(f'__version__ = "{checks.settings(ROOT)["version"]}"\n')
    (tmp_path / "sgmim/core.py").write_text("def one(): return 1\n")
    (tmp_path / "sgmim/data/more.py").write_text("")
    readme.write(tmp_path)
    return tmp_path


def test_the_small_project_is_clean(mini):
    for check in checks.CHECKS:
        if check is not checks.in_step:  # needs nbdev: see the next test
            assert check(mini) == [], check.__name__


def test_out_of_step_is_found(mini):
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    export = "import sys; sys.argv = sys.argv[:1]; from nbdev.doclinks import nbdev_export; nbdev_export()"
    subprocess.run([sys.executable, "-c", export], cwd=mini, env=env, check=True)
    assert checks.in_step(mini) == []
    (mini / "sgmim/orphan.py").write_text("")
    (mini / "sgmim/core.py").write_text((mini / "sgmim/core.py").read_text() + "# edited by hand\n")
    (mini / "sgmim/data/more.py").unlink()
    write(mini, "index.ipynb", *INDEX, cell("1+1") | {"execution_count": 7})
    found = "\n".join(checks.in_step(mini))
    for part in (
        "orphan.py: no notebook",
        "core.py is not what",
        "more.py is missing",
        "index.ipynb is not clean",
    ):
        assert part in found
    assert len(found.splitlines()) == 4, found


def output(text="", **data):
    return {"output_type": "display_data", "metadata": {}, "data": {"text/plain": text, **data}}


# check: [(file, what to put there instead (a notebook's extra cells, or an edit old -> new), words of the
# problem)]
FAULTS = {
    "readme_in_step": [
        ("README.md", ("Mini", "Maxi"), "README.md is not what"),
        ("index.ipynb", [cell("## News", "markdown")], "README.md is not"),
    ],
    "import_order": [
        ("00_core.ipynb", [cell("#| export\ndef f():\n    from sgmim.data.more import two")], "comes later"),
        ("00_core.ipynb", [cell("from sgmim.data import more")], "comes later"),
        ("data/00_more.ipynb", [cell("import sgmim.nowhere")], "no notebook exports"),
        ("data/00_more.ipynb", [cell("#| export\ndef (")], "not valid Python"),
    ],
    "late_imports": [
        ("00_core.ipynb", [cell("#| export\nimport soundfile as sf")], "imports soundfile on top"),
        (
            "00_core.ipynb",
            [cell("#| export\ntry: from fastcore.basics import patch\nexcept ImportError: pass")],
            "fastcore",
        ),
    ],
    "functions": [
        ("sgmim/core.py", ("return 1", f"return {{{chr(10) * 40}}}"), "one has more than 40 lines"),
        (
            "sgmim/core.py",
            ("one()", "one(a,  # a number\n  b,\n  )"),
            "core.py:1: one has no docments for b",
        ),
        (
            "sgmim/core.py",
            ("def one():", "@dataclass\nclass C:\n  a: int\n  b: int # b\n  def f():"),
            "for a",
        ),
        ("sgmim/core.py", ("def one(): return 1", "class C:\n  def __init__(self, x): pass"), "for x"),
        ("sgmim/data/more.py", ("", "class one: pass\n"), "one is defined in core.py and data/more.py"),
    ],
    "imports_apart": [
        ("00_core.ipynb", [cell("import math\nx = math.pi")], "mixes imports"),
        ("00_core.ipynb", [cell("def f():\n    import math\n    x = math.pi")], "mixes imports"),
    ],
    "notebook_state": [
        (
            "00_core.ipynb",
            [cell("x", outputs=[output("", **{"application/vnd.jupyter.widget-view+json": {}})])],
            "widget state",
        ),
        ("00_core.ipynb", [cell("x", outputs=[output(**{"image/png": "A" * 1_600_000})])], "over 1.5 MB"),
        ("00_core.ipynb", [cell("x", outputs=[output("/home/me/x")])], "somebody's machine"),
        (
            "00_core.ipynb",
            [cell("x", outputs=[{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}])],
            "an error",
        ),
        ("00_core.ipynb", [cell("nbdev_" + "export()")], "skips a cell"),
        ("00_core.ipynb", [cell("!false")], "fail unseen"),
    ],
    "pages": [
        (
            "00_core.ipynb",
            [cell("x", outputs=[output(**{"image/png": ""})]), cell("*A plot.*", "markdown")],
            "no `#| fig-alt",
        ),
        (
            "00_core.ipynb",
            [cell("#| fig-alt: a plot\nx", outputs=[output(**{"image/svg+xml": ""})])],
            "no caption",
        ),
        (
            "00_core.ipynb",
            [
                cell("#| fig-alt: a plot\nx", outputs=[output(**{"image/png": ""})]),
                cell("x"),
                cell("*Late.*", "markdown"),
            ],
            "no caption",
        ),
        (
            "00_core.ipynb",
            [
                cell("#| fig-alt: a plot\nx", outputs=[output(**{"image/png": ""})]),
                cell("**Bold** is none.", "markdown"),
            ],
            "no caption",
        ),
        (
            "00_core.ipynb",
            [cell("#| fig-alt: left: a plot\n#| fig-cap: a\nx", outputs=[output(**{"image/png": ""})])],
            "no text in YAML",
        ),
        ("00_core.ipynb", [cell("#| fig-cap:\nx")], "no text in YAML"),
        (
            "00_core.ipynb",
            [cell("#| hide\nx", outputs=[{"output_type": "stream", "name": "stderr", "text": ["50%"]}])],
            "stderr",
        ),
        (
            "00_core.ipynb",
            [
                cell(
                    "x",
                    outputs=[{"output_type": "stream", "name": "stdout", "text": ["f.py:1: UserWarning: x"]}],
                )
            ],
            "'UserWarning'",
        ),
        ("00_core.ipynb", [cell("x", outputs=[output("Traceback (most recent call last)")])], "Traceback"),
        ("index.ipynb", ("# Mini", "Mini"), "title"),
        ("index.ipynb", ("> Two modules.", "Two modules."), "title"),
        ("index.ipynb", ("modules.", "modules,\\n> no more."), "title"),
        ("index.ipynb", ("modules.", "modules.\\n\\nAnd more."), "more than title"),
    ],
    "links": [
        ("00_core.ipynb", [cell("[a](02_gone.ipynb)", "markdown")], "does not exist"),
        ("00_core.ipynb", [cell("[a](data/00_more.ipynb#three)", "markdown")], "no such heading"),
        ("00_core.ipynb", [cell("![a](images/gone.png)", "markdown")], "does not exist"),
        ("00_core.ipynb", [cell('<a href="gone.html">a</a>', "markdown")], "does not exist"),
        (
            "CHANGELOG.md",
            ("first release", "[first](https://github.com/sgmim/sgmim/blob/main/GONE.md) release"),
            "does not exist",
        ),
        (
            "CHANGELOG.md",
            ("first release", "[first](https://sgmim.github.io/sgmim/gone.html) release"),
            "does not exist",
        ),
    ],
    "sidebar": [
        ("nbs/sidebar.yml", ("00_core", "00_cor"), "does not exist"),
        ("nbs/sidebar.yml", ("index.ipynb, ", ""), "does not list index"),
        ("nbs/sidebar.yml", ("index.ipynb, ", "index.ipynb, 00_core.ipynb, "), "more than once"),
    ],
    "quarto_settings": [
        ("_quarto.yml", ("project:", "\tproject:"), "_quarto.yml: "),
        ("nbs/sidebar.yml", ("website: {", "website: {{"), "nbs/sidebar.yml: "),
        ("nbs/_quarto.yml", (", sidebar.yml", ""), "nothing else"),
        ("nbs/_quarto.yml", ("project:", "format: html\nproject:"), "nothing else"),
        ("_quarto.yml", ("format:", "formats:"), "formats is no key"),
        ("_quarto.yml", ("navbar:", "navber:"), "website: navber is no key"),
        ("_quarto.yml", ("styles.css", "style.css"), "style.css does not exist"),
        ("_quarto.yml", ("href: index", "href: indix"), "indix.ipynb does not exist"),
        ("_quarto.yml", ("[00_core.ipynb]", "[02_core.ipynb]"), "02_core.ipynb does not exist"),
        ("_quarto.yml", ("[00_core.ipynb]", "[]"), "More is empty"),
        ("_quarto.yml", ("website:\n", "website:\n  favicon: images/gone.svg\n"), "gone.svg does not exist"),
        ("_quarto.yml", ("settings.ini", "setting.ini"), "setting.ini does not exist"),
        ("_quarto.yml", ("#why", "#how"), "does not exist"),
        ("_quarto.yml", ("core.html", "gone.html"), "does not exist"),
        ("nbs/sidebar.yml", ("[00_core.ipynb, data/00_more.ipynb]", "[]"), "A is empty"),
    ],
    "specifiers": [
        ("settings.ini", ("torch>=2.6", "torch >= 2.6"), "without spaces"),
        ("settings.ini", ("0.1.18,<", "0.1.18, <"), "without spaces"),
    ],
    "console_scripts": [("settings.ini", ("core:one", "core:three"), "does not define")],
    "versions": [
        ("CITATION.cff", ("version: 0", "version: 9"), "CITATION.cff says version 9"),
        ("CHANGELOG.md", ("## 0", "## 8"), "CHANGELOG.md says"),
    ],
    "workflows": [
        (".github/workflows/test.yaml", ("runs-on", "\truns-on"), "test.yaml"),
        (".github/workflows/test.yaml", ("- run:", "- ran:"), "neither uses"),
    ],
    "deployment": [
        (".github/workflows/deploy.yaml", ("jobs:", "\tjobs:"), "Error"),
        (".github/workflows/deploy.yaml", ("jobs:", "job:"), "KeyError"),
        (".github/workflows/deploy.yaml", ("branches: [main]", "branches: [main, dev]"), "no other branch"),
        (".github/workflows/deploy.yaml", ("1.7.32", "release"), "which version"),
        (".github/workflows/deploy.yaml", ("1.7.32", "1.7"), "which version"),
        (".github/workflows/deploy.yaml", ("checkout@v4", "checkout@main"), "not pinned"),
        (".github/workflows/deploy.yaml", ("make docs", "make doc"), "does not run"),
        (".github/workflows/deploy.yaml", ("contents: read", "contents: write"), "permissions on top"),
        (".github/workflows/deploy.yaml", ("      pages: write\n", ""), "job deploy is to have"),
        (
            ".github/workflows/deploy.yaml",
            (
                "runs-on: ubuntu-latest\n    timeout",
                "permissions: write-all\n    runs-on: ubuntu-latest\n    timeout",
            ),
            "job build is to have",
        ),
        (".github/workflows/deploy.yaml", ("deploy-pages@v4", "deploy@v4"), "publishes nothing"),
    ],
}


@pytest.mark.parametrize(
    "check, file, fault, words", [(c, *f) for c, faults in FAULTS.items() for f in faults]
)
def test_a_fault_is_found(mini, check, file, fault, words):
    if isinstance(fault, tuple) and file.endswith(".ipynb"):
        file = f"nbs/{file}"
    if isinstance(fault, list):
        write(
            mini,
            file,
            *{"00_core.ipynb": CORE, "data/00_more.ipynb": MORE, "index.ipynb": INDEX}[file],
            *fault,
        )
    else:
        text = (mini / file).read_text()
        assert fault[0] in text
        (mini / file).write_text(text.replace(*fault))
    found = getattr(checks, check)(mini)
    assert any(words in problem for problem in found), found


FINE = [
    cell('#| fig-alt: "One: a plot."\nx', outputs=[output(**{"image/png": ""})]),
    cell("#| fig-alt: another\ny", outputs=[output(**{"image/png": ""})]),
    cell("#| echo: false\nz", outputs=[output(**{"text/markdown": "Where from."})]),
    cell("*Two plots.*\n\n## And on", "markdown"),
    cell('#| fig-alt: a plot\n#| fig-cap: "A plot."\nx', outputs=[output(**{"image/png": ""})]),
    cell("#| fig-alt: a painting\nx", outputs=[output(**{"image/jpeg": ""})]),
    cell("#| hide\nx", outputs=[output(**{"image/png": ""})]),
    cell("#| hide_output\ny", outputs=[output(**{"image/png": ""})]),
]


def test_folders_import_to_the_left(mini):
    for folder in ("scenes", "models"):
        (mini / "nbs" / folder).mkdir()
        write(mini, f"{folder}/00_toy.ipynb", cell(f"#| default_exp {folder}.toy"), cell("#| export\nx = 1"))

    def problems(code):
        write(mini, "data/00_more.ipynb", *MORE, cell(code))
        return checks.import_order(mini)

    assert problems("from sgmim.scenes.toy import x") == []  # an example may show the embedded corpus
    for code in ("#| export\nfrom sgmim.scenes.toy import x", "from sgmim.models.toy import x"):
        assert "comes later" in problems(code)[0], code


def test_what_a_page_may_do(mini):
    write(mini, "00_core.ipynb", *CORE, *FINE)
    assert checks.pages(mini) == []


def test_every_check_has_a_fault():
    assert {c.__name__ for c in checks.CHECKS} == FAULTS.keys() | {"in_step"}


# --- the README writer


def test_readme_writer(mini):
    png = "iVBORw0KGgo="
    write(
        mini,
        "index.ipynb",
        cell(
            '# T\n\n::: {.callout-note title="Mind"}\nSee [a](00_core.ipynb#one){.x} and'
            " [b](../LICENSE).\n:::\n\n![p](images/x.png){width=50%}\n\n```sh\n::: stays"
            " [c](d)\n```\n\n[d](https://github.com/sgmim/sgmim/blob/main/LICENSE) [e](https://example.org/x)"
            " [f](#t)",
            "markdown",
        ),
        cell("#| hide\nsecret = 1"),
        cell("#| echo: false\nquiet = 1", outputs=[output("shown")]),
        cell("#| fig-alt: a plot\nplot()", outputs=[output("<Figure size 1x1>", **{"image/png": png})]),
        cell(
            "noisy()",
            outputs=[
                {"output_type": "stream", "name": "stderr", "text": ["warning"]},
                {"output_type": "stream", "name": "stdout", "text": ["said\n"]},
            ],
        ),
        cell("%%bash\nmake test"),
    )
    text, pictures = readme.render(mini)
    for part in (
        "> **Mind**\n>\n> See [a](nbs/00_core.ipynb#one) and [b](LICENSE).",
        "![p](nbs/images/x.png)\n",
        "::: stays [c](d)",
        "[d](LICENSE)",
        "[e](https://example.org/x) [f](#t)",
        "```text\nshown\n```",
        "```python\nplot()\n```",
        "![a plot](nbs/images/readme/",
        "```text\nsaid\n```",
        "```sh\nmake test\n```",
    ):
        assert part in text, part
    for part in ("secret", "quiet", "#|", "Figure", "warning", "callout"):
        assert part not in text, part
    assert list(pictures.values()) == [b"\x89PNG\r\n\x1a\n"]
    assert len(readme.differences(mini)) == 2  # the text and the new picture
    readme.write(mini)
    assert readme.differences(mini) == []
    write(mini, "index.ipynb", *INDEX)
    assert len(readme.differences(mini)) == 2  # the text and the picture that nothing uses
