"""What the site shows in place of nbdev's own rendering: tables of parameters, fields and options, an index
of the names, links only where a name is meant, and tests folded. tools/docs.py calls `improve`.
"""

import ast
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import sys
import textwrap
import tokenize
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import checks

joined = checks.joined
LINK = r"\[[^\[\]]*\]\([^()\s]*\)"  # a link without another inside
COMMANDS = "sgmim.apps.commands"  # the module whose functions are commands


# --- links


def fewer_links(text, site):
    """Markdown without two kinds of links that nbdev makes: one inside a link of the author's, and that of
    an ordinary word in lower case without (), such as `index` or `caption`. A link to a method, which has
    no anchor, leads to its class."""
    text = re.sub(rf"({re.escape(site)}/[\w/.-]+\.html#\w+)\.\w+", r"\1", text)
    text = re.sub(rf"\[(`[a-z]+`)\]\({re.escape(site)}/[^()\s]*\)", r"\1", text)

    def outer(match):
        return re.sub(r"\[([^\[\]]*)\]\([^()\s]*\)", r"\1", match[1]) + "]("

    return re.sub(rf"(\[(?:[^\[\]]|{LINK})*?{LINK}(?:[^\[\]]|{LINK})*)\]\(", outer, text)


def untidy(text, site):
    "What a page shows that it should not: raw Markdown, nbdev's placeholders, links of ordinary words."
    found = re.findall(rf"\[`[a-z]+`\]\({re.escape(site)}/[^()\s]*\)", text)
    found += re.findall(r"\*args, \*\*kwargs|Call self as a function|[\w ]* at 0x[0-9a-f]+", text)
    text = re.sub(r"^\s*(```+|~~~+).*?^\s*\1\s*$", "", text, flags=re.M | re.S)
    text = re.sub(r"!\[[^\[\]]*\]\([^()\s]*\)", "", re.sub(r"`[^`\n]*`", "code", text))
    return found + re.findall(r".{0,40}\]\(http.{0,40}", re.sub(LINK, "link", text))


# --- names


def field_comments(cls):
    "{field: comment} of a dataclass or named tuple, with those of its bases."
    found = {}
    for base in (c for c in reversed(cls.__mro__) if c.__module__ == cls.__module__):
        code = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(code).readline)
        comments = [t for t in tokens if t.type == tokenize.COMMENT]
        at = {t.start[0]: t.string.lstrip("# ") for t in comments}
        alone = {t.start[0] for t in comments if t.line.lstrip()[0] == "#"}
        for node in ast.parse(code).body[0].body:
            if not isinstance(node, ast.AnnAssign):
                continue
            words, above = [at[n] for n in (node.lineno, node.end_lineno) if n in at][:1], node.lineno
            while not at.keys() & {node.lineno, node.end_lineno} and (above := above - 1) in alone:
                words.insert(0, at[above])
            found[node.target.id] = " ".join(words)
    return found


def annotation(kind):
    "An annotation in words: `str or Path or None`."
    if kind is inspect.Parameter.empty:
        return ""
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", inspect.formatannotation(kind))
    return text.replace(" | ", " or ").replace("|", r"\|").replace("NoneType", "None")


def table(head, rows):
    "A table in Markdown; columns without content are left out."
    keep = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line[i] for i in keep) + " |" for line in lines)


def cell(text):
    "Text that may stand in a table: no line breaks, | and < escaped."
    parts = re.sub(r"(?<!\\)\|", r"\\|", " ".join((text or "").split())).split("`")
    parts[::2] = [re.sub(r"<(?=\w)", r"\\<", part) for part in parts[::2]]
    return "`".join(parts)


def default(text):
    "The text of a default, with the names of functions in place of their addresses."
    return re.sub(r"<(?:built-in )?(?:function|method) ([\w.]+)[^>]*>", r"\1", text).replace("<factory>", "…")


def call(name, parameters):
    "A call with the defaults, broken at 79 columns."
    parts = [default(str(p.replace(annotation=p.empty))).replace(" ", "\0") for p in parameters]
    whole = f"{name}({', '.join(parts)})"
    lines = [whole]
    if len(whole) > 79:
        inner = textwrap.wrap(", ".join(parts), 75, break_long_words=False, break_on_hyphens=False)
        lines = [f"{name}(", *(f"    {line}" for line in inner), ")"]
    return "\n".join(lines).replace("\0", " ")


def parameter_table(thing, signature):
    "The parameters of a function or class, or the fields of a dataclass, and what a function returns."
    from fastcore.docments import docments

    parameters, returns = signature.parameters.values(), signature.return_annotation
    if isinstance(thing, type) and (dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")):
        comments, returns = field_comments(thing), signature.empty
    else:
        comments = docments(thing, args_kwargs=True)
    rows = [
        [
            f"`{p.name}`",
            annotation(p.annotation),
            "" if p.default is p.empty else f"`{cell(default(repr(p.default)))}`",
            cell(comments.get(p.name)),
        ]
        for p in parameters
    ]
    if returns not in (signature.empty, None):
        rows.append(["*returns*", annotation(returns), "", cell(comments.get("return"))])
    return table(["name", "type", "default", "meaning"], rows) if rows else ""


def method_table(cls):
    "The public methods that a class defines."
    rows = []
    for name, method in vars(cls).items():
        if inspect.isfunction(method) and not name.startswith("_") and method.__doc__:
            arguments = ", ".join(f"`{p}`" for p in list(inspect.signature(method).parameters)[1:])
            rows.append([f"`{name}`", arguments, cell(inspect.getdoc(method))])
    return table(["method", "arguments", "meaning"], rows) if rows else ""


def option_table(command):
    "The usage and the options of a command, from its parser."
    os.environ["COLUMNS"] = "79"
    parser = importlib.import_module(COMMANDS)._parser(command)
    formatter, rows = parser._get_formatter(), []
    for action in parser._actions[1:]:  # without --help
        name = action.option_strings[-1] if action.option_strings else action.dest
        value = "" if action.choices or not action.metavar else str(action.metavar)
        value = ", ".join(f"`{c}`" for c in action.choices or ()) or value
        several = "*any number*" if action.nargs in ("*", "+") else ""
        rows.append([f"`{name}`", " ".join(filter(None, [value, several])), ""])
        rows[-1][2] = cell(formatter._expand_help(action))
    usage = f"```text\n{parser.format_usage().removeprefix('usage: ').strip()}\n```"
    return usage + "\n\n" + table(["option", "values", "meaning"], rows)


def described(thing, module, name):
    "Signature, docstring and tables of a function or class, in Markdown."
    if module == COMMANDS and name.startswith("sgmim_"):
        return [f"*{inspect.getdoc(thing)}*", option_table(thing)]
    is_class, parts = isinstance(thing, type), [inspect.getdoc(thing) or ""]
    own = [c for c in inspect.getmro(thing) if c.__module__.startswith("sgmim.")] if is_class else []
    if is_class and not hasattr(thing, "_fields") and not any("__init__" in vars(c) for c in own):
        shown = f"class {name}({', '.join(b.__name__ for b in thing.__bases__ if b is not object)})"
        return [f"```python\n{shown.removesuffix('()')}\n```", *parts, method_table(thing)]
    signature = inspect.signature(thing)
    parts = [f"```python\n{call(name, signature.parameters.values())}\n```", *parts]
    parts.append(parameter_table(thing, signature))
    return parts + [method_table(thing)] if is_class else parts


# --- pages


def shown_name(source):
    "The name that a cell of nbdev documents, or None."
    match = re.search(r"^show_doc\((\w+)\)", source, re.M)
    return match and match[1]


def documentation(old, thing, module, name):
    "nbdev's Markdown `old` about a name with our description below the heading."
    from nbdev.doclinks import NbdevLookup

    head = re.match(rf".*?^#+ {name}$", old, re.M | re.S)
    text = NbdevLookup().linkify("\n\n".join(part for part in described(thing, module, name) if part))
    # a parameter that is called like a function is no link to it
    return head[0] + "\n\n" + re.sub(r"^\| \[(`[^`]+`)\]\([^()]*\)", r"| \1", text, flags=re.M)


def folded(cell):
    "Whether a cell is a test without output that defines nothing."
    source = joined(cell["source"])
    test = re.search(r"^\s*(test_\w+\(|assert )", source, re.M)
    return test and not cell.get("outputs") and not re.search(r"^(def|class) |code-fold|echo:", source, re.M)


def improve(root, proc):
    "Rewrite the processed notebooks `proc` of the project `root`."
    cfg = checks.settings(root)
    site = cfg["doc_host"] + cfg["doc_baseurl"]
    module_of = {path: name for name, path in checks.modules(root).items()}
    for file in sorted(Path(proc).rglob("*.ipynb")):
        path = file.relative_to(proc)
        content, module = json.loads(file.read_text(encoding="utf-8")), module_of.get(path)
        if path.as_posix() == "api.ipynb":
            text = name_index(root, site)
            content["cells"].append({"cell_type": "markdown", "id": "names", "metadata": {}, "source": text})
        for each in content["cells"]:
            if each["cell_type"] == "markdown":
                each["source"] = fewer_links(joined(each["source"]), site)
            if each["cell_type"] != "code":
                continue
            name = shown_name(joined(each["source"]))
            if folded(each):
                each["source"] = "#| code-fold: true\n" + joined(each["source"])
            for data in (o["data"] for o in each["outputs"] if "text/markdown" in o.get("data", {})):
                text = joined(data["text/markdown"])
                if name and module:
                    thing = getattr(importlib.import_module(module), name)
                    text = documentation(text, thing, module, name)
                data["text/markdown"] = fewer_links(text, site)
        file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def name_index(root, site):
    "All public functions and classes with what they do, a table for each module."
    address, parts = {p: a for a, p in checks.html_pages(root).items()}, []
    for module, path in checks.modules(root).items():
        rows = [
            [f"[{node.name}]({site}/{address[Path(root) / 'nbs' / path]}#{node.name.lower()})"]
            + [cell((ast.get_docstring(node) or "").split("\n\n")[0])]
            for marks, tree in checks.code_cells(root, path)
            if tree and {"export", "exports"} & marks.keys() and checks.is_shown(marks)
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        if rows:
            parts.append(f"## {module.partition('.')[2]}\n\n" + table(["name", "what it is"], rows))
    return "\n\n".join(parts)
