"""What the site needs beyond docs/: the repository's own pages, the pictures of results/, and pages that no nav names.

Links are written as they work in the repository (`../results/x.png`, `docs/data.md`); here they become the site's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# In the site -> in the repository.
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def site_links(text: str, folder: str) -> str:
    """Rewrite relative links of a page that lies in `folder` of the repository ("" or "docs") for the site's root."""

    def rewrite(match: re.Match[str]) -> str:
        path, anchor = match.group(1), match.group(2) or ""
        target = (ROOT / folder / path).resolve()
        if not target.is_relative_to(ROOT):
            return match.group(0)
        inside = target.relative_to(ROOT).as_posix()
        page = {source: name for name, source in PAGES.items()}.get(inside, inside.removeprefix("docs/"))
        return f"]({page}{anchor})"

    return re.sub(r"\]\((?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?\)", rewrite, text)


def linked_files(text: str) -> set[str]:
    """Files of results/ and conf/ that a page links to, relative to the repository."""
    return {path for path in re.findall(r"\]\(((?:results|conf)/[^)#\s]+)", text) if (ROOT / path).is_file()}


def named(nav: Any) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    return set().union(*map(named, nav.values() if isinstance(nav, dict) else nav)) if nav else set()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    known = named(config.nav)
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    if more := sorted(pages - known):
        config.nav = [*config.nav, {"More": more}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    texts = {name: site_links((ROOT / source).read_text(encoding="utf-8"), "") for name, source in PAGES.items()}
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    for page in [*texts.values(), *(site_links(f.content_string, "docs") for f in files.documentation_pages())]:
        for path in linked_files(page):
            if files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return markdown if page.file.src_uri in PAGES else site_links(markdown, f"docs/{Path(page.file.src_uri).parent}")
