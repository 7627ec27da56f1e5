"""Of the site: pages link to files of the repository that lie outside of ``docs``."""

import re
from pathlib import Path

from mkdocs.structure.files import File

DATASETS = "datasets/README.md"
_OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+(datasets/README\.md|divdr/[\w/]+\.py)\)")


def on_files(files, config):
    """The data sets' page is one of the site's."""
    source = Path(config.config_file_path).parent / DATASETS
    files.append(File.generated(config, "datasets.md", content=source.read_text()))
    return files


def on_page_markdown(markdown, page, **_):
    """A link to that page leads there, and of source files only the name stands."""
    up = "../" * page.file.src_uri.count("/")

    def inside(match):
        if match[2] == DATASETS:
            return f"[{match[1]}]({up}datasets.md)"
        return f"`{match[2]}`"

    return _OUTSIDE.sub(inside, markdown)
