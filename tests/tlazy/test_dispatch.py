"""Which implementation runs, and that it says so."""

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import tlazy
import tlazy.nn.functional as F

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about the CPU alone")


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_cpu_tensor_runs_aten_even_with_the_interpreter_on():
    assert tlazy.backend_of(torch.zeros(1)) == ("aten", "the tensor is on cpu")


@needs_no_gpu
def test_asking_for_triton_on_the_cpu_runs_the_interpreter():
    with tlazy.backend("triton"):
        assert tlazy.backend_of(torch.zeros(1)).name == "interpreter"


@needs_no_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_a_dtype_that_the_kernels_cannot_take_is_refused_when_triton_is_asked_for(dtype):
    x = torch.zeros(2, 3, dtype=dtype)
    with tlazy.backend("triton"):
        for call in (tlazy.backend_of, lambda x: F.linear(x, x)):
            with pytest.raises(RuntimeError, match=str(dtype)):
                call(x)


def test_without_the_variable_asking_for_triton_on_the_cpu_says_what_to_set():
    code = (
        "import torch, tlazy\n"
        "import tlazy.nn.functional as F\n"
        "with tlazy.backend('triton'): F.linear(torch.zeros(1, 1), torch.zeros(1, 1))"
    )
    done = python(code)
    assert done.returncode == 1
    assert "set TRITON_INTERPRET=1 in the environment before tlazy is imported" in done.stderr


def test_the_choice_ends_with_its_block_even_after_an_error():
    with pytest.raises(KeyError), tlazy.backend("aten"):
        raise KeyError
    with tlazy.backend("aten"), tlazy.backend("auto"):
        assert "requested" not in tlazy.backend_of(torch.zeros(1)).reason


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with (
        pytest.raises(ValueError, match=r"\['auto', 'triton', 'aten'\], got 'cuda'"),
        tlazy.backend("cuda"),
    ):
        pass


class Operators(TorchDispatchMode):
    """Names of tlazy's operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tlazy":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@needs_no_gpu
@pytest.mark.parametrize(
    ("name", "weight"), [("conv1d", (4, 3, 2)), ("conv_transpose1d", (3, 4, 2))]
)
def test_convolutions_run_what_was_asked_for(name, weight):
    function, x, w = getattr(F, name), torch.zeros(2, 3, 9), torch.zeros(weight)
    for requested, expected in (("auto", []), ("aten", []), ("triton", [f"{name}_forward"])):
        with tlazy.backend(requested), Operators() as ran:
            function(x, w)
        assert ran.names == expected
    with tlazy.backend("triton"), pytest.raises(RuntimeError, match=r"torch\.float64"):
        function(x.double(), w.double())


@pytest.mark.parametrize("groups", [1, 3])
def test_conv_transpose1d_runs_in_torch_func_transforms_and_forward_mode(
    device, groups, exact_fp32
):
    x, w = torch.randn(5, 1, 3, 4, device=device), torch.randn(3, 2, 3, device=device)

    def call(x):
        return F.conv_transpose1d(x, w, None, 2, 1, 1, groups, activation="tanh")

    torch.testing.assert_close(torch.func.vmap(call)(x), torch.stack([call(part) for part in x]))
    tangent = torch.randn_like(x[0])
    expected = torch.func.jvp(call, (x[0],), (tangent,))[1]
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(call(forward_ad.make_dual(x[0], tangent))).tangent
    torch.testing.assert_close(found, expected)
    step = 1e-2
    slope = (call(x[0] + step * tangent) - call(x[0] - step * tangent)) / (2 * step)
    torch.testing.assert_close(expected, slope, rtol=0.02, atol=5e-3)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_what_a_torch_func_transform_left_behind_is_the_tensor_in_it(device, requires_grad):
    """Such a wrapper says that it needs a gradient, which it does not."""
    left: list[torch.Tensor] = []
    x = torch.randn(3, 4, device=device)
    torch.func.grad(lambda x: (left.append(x), x.sum())[1])(x)
    weight = torch.randn(5, 4, device=device, requires_grad=requires_grad)
    with tlazy.backend("triton"):
        y = F.linear(left[0], weight, activation="gelu")
    assert y.requires_grad == requires_grad
    expected = torch.nn.functional.gelu(torch.nn.functional.linear(x, weight))
    torch.testing.assert_close(y, expected)
    if requires_grad:
        (found,) = torch.autograd.grad(y.sum(), weight)
        torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), weight)[0])


def test_a_torch_func_transform_runs_aten_and_says_so():
    reasons = []

    def f(x):
        reasons.append(tlazy.dispatch._triton_obstacle(x))
        return F.linear(x, x, activation="gelu").sum()

    x = torch.randn(3, 3)
    torch.testing.assert_close(torch.func.hessian(f)(x), torch.autograd.functional.hessian(f, x))
    assert "torch.func transform" in reasons[0]


@needs_no_gpu
def test_autocasts_dtype_is_the_one_that_counts():
    x = torch.zeros(2, 3)
    with tlazy.backend("triton"), torch.autocast("cpu", torch.bfloat16):
        for call in (tlazy.backend_of, lambda x: F.linear(x, x)):
            with pytest.raises(RuntimeError, match=r"torch\.bfloat16"):
                call(x)


def test_forward_mode_differentiation_runs_aten_and_says_so(device):
    x, tangent = torch.randn(3, 3, device=device), torch.randn(3, 3, device=device)
    with forward_ad.dual_level():
        y = F.linear(forward_ad.make_dual(x, tangent), x, activation="tanh")
        found = forward_ad.unpack_dual(y).tangent
        reason = tlazy.dispatch._triton_obstacle(x)
    expected = torch.func.jvp(lambda x0: torch.tanh(x0 @ x.T), (x,), (tangent,))[1]
    torch.testing.assert_close(found, expected)
    assert "forward-mode" in reason


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_tensor_of_tensors_runs_aten_and_says_so(device, layout):
    parts = [torch.randn(2, 7, device=device), torch.randn(3, 7, device=device)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    weight = torch.randn(4, 7, device=device)
    for part, y in zip(parts, F.linear(nested, weight).unbind(), strict=True):
        torch.testing.assert_close(y, part @ weight.T)
    kind = "NestedTensor" if layout is torch.jagged else "Tensor"
    assert f"not a {kind} with parts" in tlazy.dispatch._triton_obstacle(nested)


def test_without_triton_all_but_the_kernels_works():
    code = """
import importlib.machinery, importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
sys.modules["triton"] = None
import torch, tlazy
net = tlazy.nn.Sequential(tlazy.nn.LazyConv1d(4, 3, activation="gelu"), tlazy.nn.LazyLinear(2))
net(torch.randn(2, 3, 9)).sum().backward()
y, z = torch.ops.tlazy.linear_forward(torch.ones(2, 3), torch.ones(4, 3), None, "gelu", True)
print(y.shape, z.shape)
with tlazy.backend("triton"):
    tlazy.backend_of(torch.zeros(1))
"""
    done = python(code)
    assert done.stdout == "torch.Size([2, 4]) torch.Size([2, 4])\n", done.stderr
    assert done.stderr.strip().endswith("Triton is not installed; it has wheels for Linux")


def test_importing_tlazy_is_quick_and_brings_in_no_tool():
    def share():
        done = python(
            "from time import process_time as now; start = now(); import sys, torch, triton\n"
            "before = now(); import tlazy; print((now() - before) / (before - start))\n"
            "idle = {'rich', 'typer', 'matplotlib', 'torch._dynamo', 'tlazy_kernels.launch'}\n"
            "loaded = idle & set(sys.modules)\n"
            "assert not loaded, loaded"
        )
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    # Of a busy machine both imports are slower, but not always alike: the least share counts.
    assert any(share() < 0.08 for _ in range(3))  # of 2 s: 0.16 s, and 0.1 s is seen


@needs_no_gpu
def test_kernels_that_are_imported_late_are_interpreted_as_it_was_decided_at_the_import():
    done = python(
        "import os, tlazy; os.environ['TRITON_INTERPRET'] = '1'\n"
        "from tlazy import ops\n"
        "module = ops._imported('tlazy_kernels.matmul')\n"
        "print(type(module._matmul_pointer_kernel).__name__)"
    )
    assert done.stdout.strip() == "JITFunction", done.stderr
