"""A PyTorch module as a JAX function: the same numbers under every transformation, and no trace left on either side."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from bridges.pytorch import as_jax
from tests.bridges.calls import PyTorch
from tests.bridges.modules import WRAPS, loss
from tests.classifiers import assert_same

pytestmark = pytest.mark.usefixtures("watchdog")
EAGER_AND_JIT = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


@EAGER_AND_JIT
def test_the_module_is_left_as_it_was(wrap):
    module, x = PyTorch.network().train(), PyTorch.images()
    module[1].eval()
    module[5].weight.requires_grad_(False)
    module[5].bias.grad = torch.ones(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes, state = [part.training for part in module.modules()], torch.get_rng_state()
    wrap(as_jax(module))(x)
    wrap(jax.grad(partial(loss, as_jax(module))))(x)
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == [True, True, True, True, False, True]
    assert torch.equal(module[5].bias.grad, torch.ones(3))
    assert all(p.grad is None for p in module.parameters() if p is not module[5].bias)
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())


@pytest.mark.parametrize("ambient", [torch.inference_mode, partial(torch.autocast, "cpu", dtype=torch.bfloat16)])
@EAGER_AND_JIT
def test_ambient_modes_are_not_inherited(ambient, wrap):
    module, x = PyTorch.network(), PyTorch.images()
    expected, gradient = PyTorch.forward(module, x), jax.grad(partial(loss, as_jax(module)))(x)
    with ambient():
        assert_same(wrap(as_jax(module))(x), expected)
        assert_same(wrap(jax.grad(partial(loss, as_jax(module))))(x), gradient)


class WritesFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x.view(len(x), -1).relu_())


class Keeps(nn.Module):
    kept = None

    def forward(self, x):
        self.kept = x[:, :2]
        return self.kept


@EAGER_AND_JIT
def test_a_module_that_writes_to_its_input_does_not_write_to_jax_s_memory(wrap):
    module, x = WritesFirst(), -jnp.arange(1.0, 7).reshape(2, 3)
    value, gradient = wrap(jax.value_and_grad(partial(loss, as_jax(module))))(x)
    assert_same(x, -np.arange(1.0, 7, dtype=np.float32).reshape(2, 3))
    both = wrap(lambda x: (as_jax(module)(x + 0), x + 0))(x)
    assert_same(both[1], x)
    assert value > 0
    assert_same(gradient, np.zeros((2, 3)))


@EAGER_AND_JIT
def test_what_a_module_or_a_hook_keeps_does_not_change_with_jax_s_memory(wrap):
    for module in (Keeps(), nn.Identity()):
        seen = []
        if not isinstance(module, Keeps):
            module.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0]))
        f = wrap(lambda x, module=module: as_jax(module)(x * 2))
        result = f(jnp.full((3, 50_000), 4.0))
        kept = module.kept if isinstance(module, Keeps) else seen[-1]
        for i in range(20):
            f(jnp.full((3, 50_000), float(i)))
        assert torch.equal(kept, torch.full_like(kept, 8.0))
        assert_same(result, np.full(result.shape, 8.0))


@EAGER_AND_JIT
def test_layouts_that_are_not_row_major(wrap):
    class Transposed(nn.Module):
        def forward(self, x):
            return x.transpose(1, 2)

    class ChannelsLast(nn.Module):
        def forward(self, x):
            return x.contiguous(memory_format=torch.channels_last)

    x = jnp.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert_same(wrap(as_jax(Transposed()))(x), np.asarray(x).transpose(0, 2, 1, 3))
    assert_same(wrap(as_jax(ChannelsLast()))(x), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@EAGER_AND_JIT
def test_modules_of_other_dtypes(dtype, wrap):
    module, x = nn.Linear(5, 3).to(dtype), jnp.ones((2, 5))
    expected = module(torch.ones(2, 5, dtype=dtype)).detach()
    result, gradient = wrap(as_jax(module))(x), wrap(jax.grad(partial(loss, as_jax(module))))(x)
    assert result.dtype == {torch.float64: jnp.float32, torch.float16: jnp.float16, torch.bfloat16: jnp.bfloat16}[dtype]
    assert_same(result.astype(jnp.float32), expected.float().numpy())
    assert (gradient.dtype, gradient.shape) == (jnp.float32, (2, 5))
    low = wrap(as_jax(nn.Linear(5, 3).bfloat16()))(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


def test_no_copy_in_or_out():
    class Records(nn.Module):
        pointers = ()

        def forward(self, x):
            result = torch.empty(len(x), 1024).copy_(x)
            self.pointers = x.data_ptr(), result.data_ptr()
            return result

    module, x = Records(), jnp.ones((64, 1024))
    result = as_jax(module)(x)
    assert module.pointers[0] == x.unsafe_buffer_pointer()
    # JAX copies what is not aligned to 64 bytes; PyTorch's allocator aligns.
    assert module.pointers[1] % 64 == 0
    assert module.pointers[1] == result.unsafe_buffer_pointer()
    jitted = jax.jit(as_jax(module))
    jitted(x)
    assert module.pointers[0] == x.unsafe_buffer_pointer()


def test_a_result_of_another_shape_than_at_first_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"expected a result of shape \(4, 3\), got \(4, 5\)"):
        jax.block_until_ready(jax.jit(as_jax(PyTorch.broken("wide")))(jnp.ones((4, 5))))


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got function"):
        as_jax(PyTorch.network)


def test_importing_bridges_loads_no_framework():
    code = "import sys, bridges; print(sorted({'torch', 'tensorflow', 'flax', 'jax', 'art'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
