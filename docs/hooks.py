"""Pages of the site that are made when it is built (``mkdocs.yml``): the start page, the tutorial and the reference.

The start page is README.md, the tutorial is tutorial.ipynb with the outputs that are in it. The reference has a page
for each room of the package, made from its docstrings. Links to files outside docs/ are for readers of the repository:
on the site only their text stays.
"""

import json
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rmn_jax"


def modules() -> dict[str, list[str]]:
    """The public modules of each room, a folder or a module directly below ``rmn_jax``."""
    rooms: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and not any(part.startswith("_") for part in parts):
            rooms.setdefault(parts[0], []).append(".".join(("rmn_jax", *parts)))
    return rooms


def tutorial() -> str:
    """The notebook as Markdown: text, code and outputs."""
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            if "image/png" in output.get("data", {}):
                image = "".join(output["data"]["image/png"].split())
                parts.append(f"![output](data:image/png;base64,{image})")
    parts.append("[The notebook](tutorial.ipynb) itself.")
    return "\n\n".join(parts) + "\n"


def on_config(config):
    """Adds pages that the navigation does not name to its second section, and those of the reference to the last."""
    named = json.dumps(config.nav)
    (pages,) = config.nav[1].values()
    pages += [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f'"{path.name}"' not in named]
    config.nav[-1] = {"Reference": [f"reference/{room}.md" for room in modules()]}
    return config


def on_files(files, config):
    """Adds the pages that are not in docs/."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "tutorial.md", content=tutorial()))
    for room, names in modules().items():
        page = f"# rmn_jax.{room}\n\n" + "".join(f"::: {name}\n\n" for name in names)
        files.append(File.generated(config, f"reference/{room}.md", content=page))
    return files


def on_page_markdown(markdown, page, config, files):
    """Removes links out of docs/."""

    def kept(link: re.Match) -> str:
        target = link[2].partition("#")[0]
        inside = not target or "://" in target or files.get_file_from_path(target) is not None
        return link[0] if inside else link[1]

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]*)\)", kept, markdown) if "/" not in page.file.src_uri else markdown
