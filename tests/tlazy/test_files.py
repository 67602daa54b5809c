"""Files appear whole or not at all, and nothing but a file is ever replaced."""

import os
import stat
import subprocess
import sys

import pytest

from tlazy.files import remove_temporaries, replacing


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_the_old_file_stays_where_the_block_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("old", [None, 0o604])
def test_the_mode_is_that_of_the_old_file_else_what_the_umask_allows(tmp_path, old):
    path = tmp_path / "file"
    if old is not None:
        path.touch()
        path.chmod(old)
    before = os.umask(0o027)
    try:
        with replacing(path) as temporary:
            # As safetensors writes: to a private file that takes the place of the one given.
            private = tmp_path / "private"
            private.touch(0o600)
            private.replace(temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == (old or 0o640)


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="not a regular file"), replacing(path):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_missing_folder_is_named_with_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "missing" / "weights.safetensors"
    with pytest.raises(FileNotFoundError) as refused, replacing(path):
        pass
    assert refused.value.filename == str(path)


def test_what_a_process_that_was_killed_left_is_removed(tmp_path):
    path, other = tmp_path / "record.json", tmp_path / "another.json"
    for of in (path, other):
        killed = (
            "import os, sys; from tlazy.files import replacing\n"
            "with replacing(sys.argv[1]): os._exit(1)"
        )
        subprocess.run([sys.executable, "-c", killed, str(of)], check=False)
    path.write_text("{}")
    assert len(list(tmp_path.iterdir())) == 3
    remove_temporaries(path)
    left = {found.name for found in tmp_path.iterdir()}
    assert "record.json" in left
    assert len(left) == 2
    assert not any(name.startswith(".record") for name in left)
