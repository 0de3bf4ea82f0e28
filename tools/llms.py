"""llms.txt, a list of the pages of the site for language models: title, address and subtitle of each, in
the order of the sidebar.

    python tools/llms.py     print it; tools/docs.py puts it beside the pages

The form is that of https://llmstxt.org. Quarto writes such a file itself from release 1.9 on (`llms-txt:
true`); the one pinned here is older.
"""

import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import checks


def title(root, path):
    "(title, subtitle) of notebook `path`."
    head, _, rest = checks.joined(checks.cells(root, path)[0]["source"]).partition("\n\n")
    # links, which are relative to the page, keep their text
    subtitle = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", rest.split("\n")[0])
    return head.removeprefix("# ").strip(), subtitle.removeprefix("> ").strip()


def listing(root):
    "The text of llms.txt."
    cfg = checks.settings(root)
    address = {
        page.relative_to(Path(root) / "nbs").as_posix(): f"{cfg['doc_host']}{cfg['doc_baseurl']}/{html}"
        for html, page in checks.html_pages(root).items()
    }
    lines = [f"# {cfg['title']}", "", f"> {cfg['description']}"]
    sidebar = yaml.safe_load((Path(root) / "nbs/sidebar.yml").read_text(encoding="utf-8"))["website"][
        "sidebar"
    ]["contents"]

    def add(entries, depth):
        for entry in entries:
            if isinstance(entry, dict) and "section" in entry:
                lines.extend(["", f"{'#' * depth} {entry['section']}"])
                if not any(isinstance(e, dict) and "section" in e for e in entry["contents"][:1]):
                    lines.append("")
                add(entry["contents"], depth + 1)
            else:
                page = entry if isinstance(entry, str) else entry.get("href") or entry["file"]
                name, subtitle = title(root, page)
                lines.append(f"- [{name}]({address[page]}): {subtitle}")

    if not (isinstance(sidebar[0], dict) and "section" in sidebar[0]):
        lines.append("")
    add(sidebar, 2)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(listing(Path(__file__).resolve().parent.parent), end="")
