"""Whoever touches a lazy parameter is told its path and the next step (row 20)."""

import copy
import io

import pytest
import torch
from torch.distributed import checkpoint as checkpoints
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parameter import is_lazy

from tests.tlazy.lazy_models import WAY_OUT, X, nested, two_layers, unlike_torch
from tests.tlazy.snapshot import refused
from tlazy import nn

USES = {
    "shape": lambda p: p.shape,
    "size": lambda p: p.size(),
    "numel": lambda p: p.numel(),
    "nbytes": lambda p: p.nbytes,
    "ndim": lambda p: p.ndim,
    "transpose": lambda p: p.mT,
    "add": lambda p: p + 1,
    "stack": lambda p: torch.stack([p, p]),
    "initializer": lambda p: torch.nn.init.ones_(p),
    "share_memory_": lambda p: p.share_memory_(),
    "copy_": lambda p: p.copy_(torch.ones(())),
    "copy_ from": lambda p: torch.ones(()).copy_(p),
    "parameters_to_vector": lambda p: torch.nn.utils.parameters_to_vector([p]),
}


@unlike_torch
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_row_20_errors_name_the_path_and_the_next_step(lib, use):
    net = nested(lib)
    with refused(net, (RuntimeError, ValueError), match=rf"encoder\.0\.weight: {WAY_OUT}"):
        use(net.encoder[0].weight)


def test_row_20_layers_know_their_path_in_a_tree_of_torchs_and_in_a_list_that_grew():
    theirs = torch.nn.Sequential(torch.nn.ReLU(), nn.LazyLinear(4))
    theirs = torch.nn.ModuleList([torch.nn.ModuleDict({"encoder": theirs})])
    ours = nn.Sequential(nn.Sequential(torch.nn.ModuleDict({"encoder": nn.Sequential()})))
    ours[0][0]["encoder"].extend([torch.nn.ReLU(), torch.nn.LazyLinear(4)])
    for net, path in ((theirs, "0.encoder.1"), (ours, "0.0.encoder.1")):
        weight = net.get_submodule(path).weight
        with refused(net, ValueError, match=rf" {path}\.weight: {WAY_OUT}"):
            weight.clone()


WRAPPERS = {
    "DDP": lambda net: torch.nn.parallel.DistributedDataParallel(net),
    "export": lambda net: torch.export.export(net, (X,)),
    "jit.trace": lambda net: torch.jit.trace(net, X),
    "jit.script": lambda net: torch.jit.script(net),
    "fx": lambda net: torch.fx.symbolic_trace(torch.nn.Sequential(net.encoder)),
    "onnx": lambda net: torch.onnx.export(net, (X,), io.BytesIO(), dynamo=False),
}


@unlike_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_row_20_what_wraps_a_model_is_told_the_path_and_the_next_step(lib, wrap, one_process):
    net = nested(lib)
    with refused(net, (RuntimeError, ValueError), match=rf"0\.weight.*: {WAY_OUT}"):
        wrap(net)
    assert net(X).shape == (5, 4)


@unlike_torch
def test_row_20_fully_shard_tells_the_path_and_the_next_step(lib, one_process):
    net = nested(lib)
    with pytest.raises(RuntimeError, match=rf"encoder\.0\.weight: {WAY_OUT}"):
        fully_shard(net)  # which has begun to change the model by then
    assert all(map(is_lazy, net.parameters()))


def test_row_20_strict_export_of_a_waiting_tree_names_the_next_step():
    net = nested(nn)
    with refused(net, RuntimeError, match=WAY_OUT):
        torch.export.export(net, (X,), strict=True)


@unlike_torch
@pytest.mark.filterwarnings("ignore::UserWarning")  # no process group: one process
@pytest.mark.parametrize("action", [checkpoints.load, checkpoints.save])
def test_row_20_distributed_checkpoints_of_a_lazy_model_name_the_next_step(lib, action, tmp_path):
    net = nested(lib)
    eager = copy.deepcopy(net)
    eager(X)
    checkpoints.save({"model": eager.state_dict()}, checkpoint_id=tmp_path / "eager")
    place = tmp_path / ("eager" if action is checkpoints.load else "lazy")
    with refused(net, CheckpointException, match=rf"encoder\.0\.weight: {WAY_OUT}"):
        action({"model": net.state_dict()}, checkpoint_id=place)
    set_model_state_dict(net, eager.state_dict())
    assert torch.equal(net(X), eager(X))


@unlike_torch
def test_row_20_an_average_of_a_lazy_model_names_the_next_step(lib):
    net = nested(lib)
    average = torch.optim.swa_utils.AveragedModel(net)
    net(X)
    with refused(average.module, ValueError, match=rf"encoder\.0\.weight: {WAY_OUT}"):
        average.update_parameters(net)
    average(X)
    average.update_parameters(net)
    assert torch.equal(average(X), net(X))


def test_row_20_a_placeholder_can_be_shown():
    assert f"{nested(nn).encoder[0].weight:>30}" == "<UninitializedParameter>".rjust(30)


def test_row_20_labels_are_gone_once_shapes_are_known():
    net = two_layers(nn)
    net(X)
    assert all(vars(p) == {} for p in net.parameters())
