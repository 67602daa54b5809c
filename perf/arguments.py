"""The command lines of this folder."""

from __future__ import annotations

import argparse
from typing import NoReturn

from tlazy.errors import UserError


class Parser(argparse.ArgumentParser):
    """Of ``python -m MODULE``; raises UserError where argparse would print usage and exit."""

    def __init__(self, module: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(message)
