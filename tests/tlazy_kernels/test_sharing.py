"""Of tests that need most of a GPU's memory, one runs at a time."""

import fcntl

import pytest
import torch

from tests import EMULATED
from tests.tlazy_kernels import sharing


@pytest.fixture
def device():
    """A GPU is pretended."""
    return "cuda"


@pytest.fixture
def emptied(monkeypatch):
    """Whether the lock was held, at each time when torch's cache was emptied."""
    held = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(is_held()))
    return held


def is_held():
    """Whether another process would have to wait."""
    with sharing.LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture(autouse=True)
def own_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "LOCK", tmp_path / "lock")


def test_memory_is_given_back_before_the_next_process_has_its_turn(emptied):
    with sharing.most_of_the_memory():
        assert is_held()
        assert emptied == []
    assert emptied == [True]
    assert not is_held()


@pytest.mark.skipif(EMULATED, reason="vast tensors are not for an emulated GPU")
def test_vast_tensors_are_asked_for_by_one_process_at_a_time(request, monkeypatch, emptied):
    asked = []

    def memory():
        asked.append(is_held())
        return 0, 0

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    with pytest.raises(pytest.skip.Exception, match="30 GiB"):
        request.getfixturevalue("vast")
    assert asked == emptied == [True]
    assert not is_held()
