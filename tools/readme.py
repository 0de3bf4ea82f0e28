"""Make README.md from nbs/index.ipynb, as plain GitHub Markdown.

    python tools/readme.py           write README.md
    python tools/readme.py --check   say what differs, write nothing; exit status 1 if something does

Hidden cells and directives are dropped, stored outputs are kept (text in a fence, pictures as files under
nbs/images/readme/), Quarto's call-outs become quotations. Links in the notebook are relative to nbs/; here
they become relative to the top of the repository, where README.md stands, so they work on any host and in
a plain checkout.
"""

import argparse
import base64
import configparser
import json
import posixpath
import re
import sys
from pathlib import Path

NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook, then run `make readme`. -->"
PICTURES = "nbs/images/readme"
HIDE_CELL = {"hide", "default_exp"}
HIDE_SOURCE = {"hide_input"}
HIDE_OUTPUT = {"hide_output"}


def joined(text):
    "nbformat stores text either as one string or as a list of lines."
    return "".join(text) if isinstance(text, list) else text


def directives(source):
    "`#| key: value` lines at the top of a cell -> ({key: value}, the source without them)."
    found, lines = {}, source.splitlines()
    while lines and (match := re.match(r"\s*#\s*\|\s*(.+)", lines[0])):
        key, _, value = match[1].partition(":")
        found[key.split()[0]] = value.strip().strip("\"'")
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def from_top(target, git_url, branch):
    "A link as written in nbs/index.ipynb -> the same link as seen from the top of the repository."
    for kind in ("blob", "tree", "raw"):
        own = f"{git_url}/{kind}/{branch}/"
        if target.startswith(own):
            return target[len(own) :]
    if re.match(r"[a-z][a-z0-9+.-]*:|#|/", target, re.I):  # a scheme, an anchor, a site-absolute path
        return target
    path, sharp, fragment = target.partition("#")
    return posixpath.normpath(posixpath.join("nbs", path)) + sharp + fragment


def plain(text, git_url="", branch="main"):
    "Quarto Markdown -> GitHub Markdown. Lines inside code fences are left as they are."

    def link(m):
        return m[1] + from_top(m[2], git_url, branch) + m[3]

    # quoted: for each open `:::` block, whether its text is shown as a quotation
    out, fence, quoted = ([], None, [])
    for line in text.splitlines():
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and fence is None:
            fence = mark[1][0] * 3
        elif mark and mark[1].startswith(fence):
            fence = None
        elif fence is None:
            if opening := re.match(r":::+\s*(\S.*)", line):
                kind = re.search(r"callout-(\w+)", opening[1])
                title = re.search(r'title="([^"]*)"', opening[1])
                quoted.append(bool(kind))
                if kind:
                    out += [f"> **{title[1] if title else kind[1].capitalize()}**", ">"]
                continue
            if re.match(r":::+\s*$", line):
                if quoted and quoted.pop():
                    out.append("")
                continue
            line = re.sub(r"(\]\(<?)([^)\s>]+)([^)]*\))(?:\{[^}]*\})?", link, line)
            line = re.sub(r'((?:href|src)=")([^"]+)(")', link, line)
            line = re.sub(r"^(#+ .*?)\s*\{[^}]*\}\s*$", r"\1", line)  # heading attributes
        out.append(("> " + line).rstrip() if any(quoted) else line)
    return "\n".join(out).strip("\n")


def outputs(cell, options, pictures):
    "The stored outputs of a cell as Markdown; image bytes are added to `pictures` {path: bytes}."
    parts = []
    for i, out in enumerate(cell.get("outputs", [])):
        data = out.get("data", {})
        text = (
            joined(out.get("text", ""))
            if out["output_type"] == "stream" and out.get("name") == "stdout"
            else ""
        )
        if "image/png" in data:
            path = f"{PICTURES}/{cell['id']}-{i}.png"
            pictures[path] = base64.b64decode(joined(data["image/png"]))
            parts.append(
                f"![{options.get('fig-alt') or options.get('fig-cap') or 'output of the code above'}]({path})"
            )
        elif "text/markdown" in data:
            parts.append(joined(data["text/markdown"]).strip("\n"))
        else:
            text = text or joined(data.get("text/plain", ""))
            if text.strip() and not re.fullmatch(
                r"<[^<>]*>", text.strip()
            ):  # `<Figure size …>` and the like say nothing
                parts.append("```text\n" + text.strip("\n") + "\n```")
    return parts


def render(root):
    "-> (text of README.md, {path of a picture: its bytes})"
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(Path(root) / "settings.ini", encoding="utf-8")
    git_url, branch = ini["DEFAULT"]["git_url"], ini["DEFAULT"]["branch"]
    notebook = json.loads((Path(root) / "nbs/index.ipynb").read_text(encoding="utf-8"))
    parts, pictures = [NOTE], {}
    for cell in notebook["cells"]:
        source = joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(plain(source, git_url, branch))
        elif cell["cell_type"] == "code":
            options, code = directives(source)
            if HIDE_CELL & options.keys() or options.get("include") == "false":
                continue
            if code and not HIDE_SOURCE & options.keys() and options.get("echo") != "false":
                shell = re.match(r"%%(?:bash|sh)\s*\n|!", code)
                language = "sh" if shell else "python"
                code = re.sub(r"^%%(?:bash|sh)\s*\n|^!", "", code, flags=re.M) if shell else code
                parts.append(f"```{language}\n{code}\n```")
            if not HIDE_OUTPUT & options.keys() and options.get("output") != "false":
                parts += outputs(cell, options, pictures)
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def differences(root):
    "What of README.md and its pictures is not what nbs/index.ipynb says."
    root = Path(root)
    if not (root / "nbs/index.ipynb").exists():
        return ["nbs/index.ipynb is missing: README.md is made from it"]
    text, pictures = render(root)
    wanted = {"README.md": text.encode(), **pictures}
    there = {"README.md", *(p.relative_to(root).as_posix() for p in (root / PICTURES).glob("*"))}
    stale = [p for p, data in wanted.items() if not (root / p).exists() or (root / p).read_bytes() != data]
    return [f"{p} is not what nbs/index.ipynb says: run `make readme`" for p in stale] + [
        f"{p} is used by no output of nbs/index.ipynb: run `make readme`"
        for p in sorted(there - wanted.keys())
    ]


def write(root):
    root = Path(root)
    text, pictures = render(root)
    for old in (root / PICTURES).glob("*"):
        old.unlink()
    for path, data in {"README.md": text.encode(), **pictures}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs")
    top = Path(__file__).resolve().parent.parent
    if parser.parse_args().check:
        problems = differences(top)
        print("\n".join(problems) or "README.md agrees with nbs/index.ipynb")
        sys.exit(bool(problems))
    write(top)
    print("wrote README.md")
