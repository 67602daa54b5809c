"""A record's page and pictures, in files beside it."""

from __future__ import annotations

import sys
from pathlib import Path

from tlazy.errors import one_line
from tlazy.report.page import write_html
from tlazy.report.pictures import write_pngs
from tlazy.report.record import load


def write_report(path: Path) -> None:
    """Draw the record `path` beside it, with what is installed, and say on stderr what is not."""
    try:
        content = load(path)
        write_html(content, path.with_suffix(".html"))
        write_pngs(content, path.parent)
    except Exception as error:  # a drawing library's are any; the record is there
        print(f"no report, or a part of it: {one_line(error)}", file=sys.stderr)
