import importlib.util
from contextlib import contextmanager

import pytest
import torch


@pytest.fixture
def full_disk():
    """A context in which no file grows beyond a page: each write fails as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def full():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture
def exact_fp32():
    """PyTorch's switches at float32's full accuracy, which the kernels follow."""
    switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


@pytest.fixture
def one_thread():
    """Threads that wait for each other are slow where the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs leave out their pictures, which take longer than a few epochs do."""
    if importlib.util.find_spec("matplotlib"):
        monkeypatch.setattr("tlazy.plot.draw", lambda *_: None)


@pytest.fixture
def one_process():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()
