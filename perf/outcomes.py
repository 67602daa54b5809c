"""What became of tests, in a file that gets a line for each event as it comes."""

from __future__ import annotations

import json
from pathlib import Path

STARTED = "started"


def read(path: Path) -> dict[str, dict[str, str]]:
    """The last that is known of each test: its ``"outcome"``, and ``"why"`` it failed."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a killed run may leave half a line
    return {event.pop("test"): event for event in map(json.loads, lines)}
