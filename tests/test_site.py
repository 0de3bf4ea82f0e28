"""What Quarto is given: nbdev's processing of all notebooks, checked without Quarto; and each of these
checks can fail. Also llms.txt and the social card."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import struct
import subprocess
import sys

import pytest
import yaml
from test_project import CORE, INDEX, ROOT, cell, mini, output, write  # noqa: F401

sys.path.insert(0, str(ROOT / "tools"))
import apidoc  # noqa: E402
import checks  # noqa: E402
import docs  # noqa: E402
import llms  # noqa: E402


def prepared(root):
    "Run nbdev's processing of the project `root`, a copy, and the check of what came out."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {
        "PYTHONPATH": str(root),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [
            sys.executable,
            ROOT / "tools/docs.py" if not (root / "tools").exists() else root / "tools/docs.py",
            "--prepare",
        ],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_the_site_is_ready_for_quarto(tmp_path):
    "Half a minute on two cores: every exported cell and every import of every notebook is run."
    copy = tmp_path / "sgmim"
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(
            ".git", ".venv", "_proc", "_docs", "runs", "__pycache__", ".pytest_cache", ".ruff_cache"
        ),
    )
    done = prepared(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"prepared {len(checks.notebooks(ROOT))} notebooks" in done.stdout
    for name in (
        "_quarto.yml",
        "sidebar.yml",
        "styles.css",
        "theme.scss",
        "404.qmd",
        "images/social_card.png",
    ):
        assert (copy / "_proc" / name).exists(), name
    names = json.loads((copy / "_proc/api.ipynb").read_text())["cells"][-1]["source"]
    for module, path in checks.modules(ROOT).items():
        for name in docs.documented(ROOT, path):
            assert f"[{name}](" in names, f"{module}.{name}"
    words = "".join(p.read_text(encoding="utf-8").lower() for p in (copy / "_proc").rglob("*.ipynb"))
    for sought in ("out of memory", "masking ratio", "resume", "license", "install"):
        assert sought in words, f"a search for {sought!r} finds nothing"


# --- our own rendering


def test_a_name_is_linked_once_and_a_word_is_not():
    site = "https://a.io/b"
    for text, better in (
        (f"see [[`run_demo`]({site}/x.html#run_demo)](y.ipynb).", "see [`run_demo`](y.ipynb)."),
        (
            f"[the [`Box`]({site}/x.html#box) and [`one`]({site}/x.html)](y.ipynb)",
            "[the `Box` and `one`](y.ipynb)",
        ),
        (f"[`caption`]({site}/x.html#caption)", "`caption`"),
        (f"[`draw()`]({site}/x.html#draw)", f"[`draw()`]({site}/x.html#draw)"),
        (f"[`Box.size`]({site}/x.html#box.size)", f"[`Box.size`]({site}/x.html#box)"),
        ("[`caption`](y.ipynb) [x] [a](b)", "[`caption`](y.ipynb) [x] [a](b)"),
    ):
        assert apidoc.fewer_links(text, site) == better
        assert apidoc.untidy(better, site) == []
    for text in (f"[[`a_b`]({site}/x)]({site}/y)", f"[`draw`]({site}/x)", "```\nf(*args, **kwargs)\n```"):
        assert apidoc.untidy(text, site), text


def test_every_field_of_a_configuration_has_its_comment():
    from sgmim.models.patches import PatchMask
    from sgmim.models.sgmim import EncoderConfig, SGMIMConfig
    from sgmim.train import TrainConfig

    for config in (TrainConfig, EncoderConfig, SGMIMConfig):
        text = "\n".join(apidoc.described(config, config.__module__, config.__name__))
        for field in dataclasses.fields(config):
            row = re.search(rf"^\| `{field.name}` \| \S.* \| `.+` \| (\S.*) \|$", text, re.M)
            assert row, f"{config.__name__}.{field.name}"
        assert "§3.2" in text
    text = "\n".join(apidoc.described(TrainConfig, "sgmim.train", "TrainConfig"))
    assert "| `epochs` | float | `30.0` | §3.2: 30 for SpokenCOCO" in text
    assert (
        "| `optimiser` | str | `'bertadam'` | §3.2; 'adam' (ResDAVEnet" in text
    )  # a comment above the field
    assert max(map(len, re.search("```python\n(.*?)```", text, re.S)[1].splitlines())) <= 79
    for name in PatchMask._fields:
        assert f"| `{name}` |" in apidoc.parameter_table(PatchMask, inspect.signature(PatchMask))


def test_the_options_of_a_command_are_those_of_its_parser():
    from sgmim.apps import commands

    for name in commands.__all__[1:]:
        function = getattr(commands, name)
        text = "\n".join(apidoc.described(function, apidoc.COMMANDS, name))
        for action in commands._parser(function)._actions[1:]:
            assert re.search(
                rf"^\| `{(action.option_strings or [action.dest])[-1]}` \|.* \S+ \|$", text, re.M
            )


def test_without_quarto_the_site_says_what_to_install(tmp_path):
    bare = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "tools/docs.py"],
        cwd=ROOT,
        env=bare,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode and done.stderr.count("\n") == 1 and "https://quarto.org" in done.stderr


def test_the_page_of_a_wrong_address_leads_on():
    targets = re.findall(r"\]\(/([^)]+)\)", (ROOT / "nbs/404.qmd").read_text(encoding="utf-8"))
    assert targets and all((ROOT / "nbs" / target).exists() for target in targets)


def test_the_site_needs_no_other():
    "Mathematics and fonts are those of the browser; columns are as wide as their text; pages fit a phone."
    settings = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["format"]["html"]
    assert settings["html-math-method"] == "mathml"
    assert all("theme.scss" in theme for theme in settings["theme"].values())
    assert "$web-font-path: false;" in (ROOT / "nbs/theme.scss").read_text()
    style = (ROOT / "nbs/styles.css").read_text()
    assert "main table > colgroup > col { width: auto !important; }" in style and "url(" not in style
    for part in ("main table { display: block;", ":not(pre) > code { overflow-wrap: anywhere;"):
        assert part in style


# --- each part can fail

FIGURE = [
    cell("Also `Box.size` and `one()`.", "markdown"),
    cell('#| fig-alt: "A plot."\n1', outputs=[output(**{"image/png": "iVBORw0KGgo="})]),
    cell("*A plot.*", "markdown"),
    cell("#| export\nclass Box:\n    'A box.'\n    def size(self):\n        'How large.'\n        return 2"),
]


@pytest.fixture
def exported(mini):  # noqa: F811
    "The small project with its modules."
    write(mini, "00_core.ipynb", *CORE, *FIGURE)
    export = "import sys; sys.argv = sys.argv[:1]; from nbdev.doclinks import nbdev_export; nbdev_export()"
    subprocess.run(
        [sys.executable, "-c", export],
        cwd=mini,
        env={k: v for k, v in os.environ.items() if k != "IN_TEST"},
        check=True,
    )
    return mini


@pytest.fixture
def site(exported):
    "The small project, exported and processed."
    done = prepared(exported)
    assert done.returncode == 0, done.stdout + done.stderr
    return exported


def edit(root, name, change):
    path = root / "_proc" / name
    notebook = json.loads(path.read_text())
    change(notebook["cells"])
    path.write_text(json.dumps(notebook))


def replace(old, new):
    "In the Markdown among the outputs, and in the sources, of processed cells."

    def change(cells):
        text = json.dumps(cells)
        assert old in text
        cells[:] = json.loads(text.replace(old, new))

    return change


@pytest.mark.slow
def test_a_fault_of_the_site_is_found(site):
    assert docs.problems(site, site / "_proc") == []
    core = (site / "_proc/00_core.ipynb").read_text()
    assert "core.html#box" in core and "box.size" not in core  # a method is linked to its class
    for change, words in (
        (
            lambda cells: cells.append(
                {"cell_type": "code", "source": "", "outputs": [{"output_type": "error"}]}
            ),
            "00_core.ipynb shows an error",
        ),
        (replace("### one", "### none"), "00_core.ipynb does not document one"),
        (replace("### Box", "Box"), "does not document Box"),
        (replace("fig-alt", "alt"), "has lost a figure"),
        (replace("A plot.*", "*"), "has lost what begins with '*A plot"),
        (replace("description: ", "about: "), "no description"),
        (
            lambda cells: cells.append({"cell_type": "markdown", "source": "[a](gone.ipynb)"}),
            "gone.ipynb, which does not exist",
        ),
        (replace("Also ", "Also [[`a`](https://a)](https://b)"), "00_core.ipynb shows"),
        (replace("core.html#one", "core.html#nine"), "no such heading"),
        (replace("core.html#one", "cores.html"), "does not exist"),
    ):
        edit(site, "00_core.ipynb", change)
        assert any(words in p for p in docs.problems(site, site / "_proc")), words
        (site / "_proc/00_core.ipynb").write_text(core)
    (site / "_proc/index.ipynb").rename(site / "_proc/other.ipynb")
    found = docs.problems(site, site / "_proc")
    assert "index.ipynb was not processed" in found and "other.ipynb is of no notebook" in found


@pytest.mark.slow
def test_prose_beside_the_title_is_missed(exported):
    write(exported, "00_core.ipynb", cell("# Core\n\n> The base.\n\nAn opening.", "markdown"), *CORE[1:])
    done = prepared(exported)
    assert done.returncode != 0 and "00_core.ipynb has lost what begins with 'An opening.'" in done.stderr


@pytest.mark.slow
def test_a_cell_that_cannot_be_run_stops_the_site(exported):
    write(exported, "00_core.ipynb", *CORE, cell("#| export\nx = 1/0"))
    done = prepared(exported)
    assert done.returncode != 0 and "ZeroDivisionError" in done.stdout + done.stderr


def test_a_fault_of_a_rendered_page_is_found(tmp_path):
    good = '<p>One (see <a href="b.html">b</a>)</p><code>[x](http://a.b)</code><script>a[0](http)</script>'
    (tmp_path / "good.html").write_text(good)
    assert docs.rendered_problems(tmp_path) == []
    bad = '<p><code>[run_demo</code>](https://a.b/c.html) <img src="https://a.b/c.png"></p>'
    (tmp_path / "page.html").write_text(bad)
    found = ["page.html loads https://a.b/c.png", "page.html shows '](https://a.b/c.html)'"]
    assert docs.rendered_problems(tmp_path) == found


# --- llms.txt and the card


def test_llms(mini):  # noqa: F811
    assert llms.listing(mini) == (
        "# sgmim\n\n> "
        + checks.settings(ROOT)["description"]
        + "\n\n- [Mini](https://sgmim.github.io/sgmim/index.html): Two modules.\n\n## A\n\n"
        "- [Core](https://sgmim.github.io/sgmim/core.html): The base.\n"
        "- [More](https://sgmim.github.io/sgmim/data/more.html): On top of core.\n"
    )
    every = llms.listing(ROOT)
    assert every.count("\n- [") == len(checks.notebooks(ROOT)) and "]()" not in every and "): \n" not in every


def test_the_card_has_the_size_that_is_asked_for():
    data = (ROOT / "nbs/images/social_card.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (1200, 630)
