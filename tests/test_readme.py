"""The README says only what is true."""

import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from tlazy.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_all_python_runs_from_top_to_bottom_and_first_prints_what_stands_below_it(tmp_path):
    first, output = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.S).groups()
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks[0] == first
    code = "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(output)


def test_links_lead_to_files_that_are_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_commands_exist():
    commands = set(re.findall(r"^tlazy (\w+)", README, re.M))
    assert commands
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
    assert CliRunner().invoke(app, ["no-such-command", "--help"]).exit_code == 2
