"""The site of the documentation builds without a warning, with every page and every public name."""

import html
import os
import pathlib
import re
import subprocess
import sys

import pytest

from rmn_jax import api

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # of the theme: not about this site
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_in_the_navigation(site):
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in [*ROOT.glob("docs/*.md"), ROOT / "docs" / "tutorial.ipynb"]:
        assert (site / page.stem / "index.html").is_file()
        assert f'href="{page.stem}/"' in start, page


def test_the_reference_has_the_public_names_and_every_room(site):
    reference = {path.parent.name: path.read_text(encoding="utf-8") for path in site.glob("reference/*/index.html")}
    rooms = {path.stem for path in (ROOT / "rmn_jax").iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert reference.keys() == rooms
    anchors = {name for text in reference.values() for name in re.findall(r'id="(rmn_jax\.[\w.]+)"', text)}
    for name in api.__all__:
        thing = getattr(api, name)
        assert f"{thing.__module__}.{thing.__qualname__}" in anchors, name


def test_links_lead_to_files_of_the_site(site):
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for link in re.findall(r'(?:href|src)="([^"#]+)', page.read_text(encoding="utf-8")):
            if "://" in link or link.startswith("data:"):
                continue
            target = (page.parent / html.unescape(link)).resolve()
            assert target.exists(), f"{page}: {link}"


def test_the_tutorial_shows_its_outputs(site):
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "tutorial" / "index.html").read_text(encoding="utf-8")))
    assert "right: 97.78% of 360 images" in text and "found = rmn.extract_features" in text
    assert "data:image/png;base64," in (site / "tutorial" / "index.html").read_text(encoding="utf-8")
