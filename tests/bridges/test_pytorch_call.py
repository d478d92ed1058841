"""A PyTorch module as a JAX function: the same numbers under every transformation, and no trace left on either side."""

import faulthandler
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec as P
from torch import nn

import jaxsmooth
from bridges.pytorch import as_jax
from tests.classifiers import assert_same
from tests.memory import needs_proc, peak, reset_peak

WATCHDOG = 60


@pytest.fixture(autouse=True)
def watchdog():
    """End the process with the traces of all threads if a test hangs."""
    faulthandler.dump_traceback_later(WATCHDOG, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def small_cnn():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 3),
    ]
    return nn.Sequential(*layers)


def images(number=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(number, 1, 8, 8)), jnp.float32)


def torch_forward(module, x):
    module.eval()
    with torch.no_grad():
        return module(torch.tensor(np.asarray(x))).numpy()


def torch_gradient(module, x):
    module.eval()
    leaf = torch.tensor(np.asarray(x), requires_grad=True)
    module(leaf).square().sum().backward()
    module.zero_grad()
    return leaf.grad.numpy()


def loss(f, x):
    return jnp.square(f(x)).sum()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_forward_is_torch_s_to_the_bit(wrap):
    module, x = small_cnn(), images()
    assert_same(wrap(as_jax(module))(x), torch_forward(module, x))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradient_is_torch_s(wrap):
    module, x = small_cnn(), images()
    value, gradient = wrap(jax.value_and_grad(partial(loss, as_jax(module))))(x)
    np.testing.assert_allclose(value, np.square(torch_forward(module, x)).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, torch_gradient(module, x), rtol=1e-5, atol=1e-7)
    assert_same(wrap(jax.grad(partial(loss, as_jax(module))))(x), gradient)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_nested_vmap_is_one_batch(wrap):
    module = small_cnn()
    rows = []
    hook = module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    x = images(24).reshape(2, 3, 4, 1, 8, 8)
    result = wrap(jax.vmap(jax.vmap(as_jax(module))))(x)
    hook.remove()
    np.testing.assert_allclose(result.reshape(24, 3), torch_forward(module, images(24)), rtol=1e-5, atol=1e-6)
    assert rows[-1] == 24
    gradient = wrap(jax.vmap(jax.vmap(jax.grad(partial(loss, as_jax(module))))))(x)
    np.testing.assert_allclose(gradient.reshape(24, 1, 8, 8), torch_gradient(module, images(24)), rtol=1e-4, atol=1e-6)


def test_scan_and_map():
    module, x = small_cnn(), images(6).reshape(3, 2, 1, 8, 8)
    f = as_jax(module)
    expected = np.stack([torch_forward(module, part) for part in x])
    assert_same(jax.lax.map(f, x), expected)
    assert_same(jax.lax.scan(lambda carry, part: (carry, f(part)), 0, x)[1], expected)


def test_shard_map_with_a_collective(mesh):
    module, x = small_cnn(), images(8)
    f = as_jax(module)
    shared = {"mesh": mesh, "in_specs": P("device")}
    forward = jax.jit(jax.shard_map(f, out_specs=P("device"), **shared))
    expected = np.concatenate([torch_forward(module, part) for part in np.split(np.asarray(x), 4)])
    total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(f(x).sum(), "device"), out_specs=P(), **shared))
    gradient = jax.jit(jax.shard_map(jax.grad(partial(loss, f)), out_specs=P("device"), **shared))
    for _ in range(20):
        assert_same(forward(x), expected)
        np.testing.assert_allclose(total(x), expected.sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient(x), torch_gradient(module, x), rtol=1e-4, atol=1e-6)


def test_eight_threads_at_once():
    module, x = small_cnn().train(), images(64)
    f = jax.jit(as_jax(module))
    expected, failures = np.asarray(f(x)), []

    def work():
        for _ in range(50):
            if not (np.asarray(f(x)) == expected).all():
                failures.append("differs")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(part.training for part in module.modules())


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_module_is_left_as_it_was(wrap):
    module, x = small_cnn().train(), images()
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
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_ambient_modes_are_not_inherited(ambient, wrap):
    module, x = small_cnn(), images()
    expected, gradient = torch_forward(module, x), jax.grad(partial(loss, as_jax(module)))(x)
    with ambient():
        assert_same(wrap(as_jax(module))(x), expected)
        assert_same(wrap(jax.grad(partial(loss, as_jax(module))))(x), gradient)


def test_parameters_that_change_take_effect_without_a_new_compilation():
    module, x = small_cnn(), images()
    f = jax.jit(lambda x: as_jax(module)(x))
    f(x)
    with torch.no_grad():
        module[5].bias += 1
    assert_same(f(x), torch_forward(module, x))
    assert f._cache_size() == 1
    assert as_jax(module) == as_jax(module) != as_jax(small_cnn())
    assert hash(as_jax(module)) == hash(as_jax(module))


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


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_module_that_writes_to_its_input_does_not_write_to_jax_s_memory(wrap):
    module, x = WritesFirst(), -jnp.arange(1.0, 7).reshape(2, 3)
    value, gradient = wrap(jax.value_and_grad(partial(loss, as_jax(module))))(x)
    assert_same(x, -np.arange(1.0, 7, dtype=np.float32).reshape(2, 3))
    both = wrap(lambda x: (as_jax(module)(x + 0), x + 0))(x)
    assert_same(both[1], x)
    assert value > 0
    assert_same(gradient, np.zeros((2, 3)))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
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


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
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
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
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


class Broken(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.calls = how, 0

    def forward(self, x):
        self.calls += 1
        if self.calls < 2:  # the first call finds the shape of the result
            return x[:, :3]
        if self.how == "raises":
            raise KeyError("no such layer: conv9")
        return x[:1, :3] if self.how == "rows" else x


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [("raises", KeyError, "no such layer: conv9"), ("rows", ValueError, "must return one row for each of 4 inputs")],
)
def test_errors_arrive_with_their_message_and_leave_the_process_usable(how, error, message):
    with pytest.raises(error, match=message):
        as_jax(Broken(how))(jnp.ones((4, 5)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(jax.jit(as_jax(Broken(how)))(jnp.ones((4, 5))))
    assert jax.jit(as_jax(small_cnn()))(images()).shape == (4, 3)


def test_a_result_of_another_shape_than_at_first_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"expected a result of shape \(4, 3\), got \(4, 5\)"):
        jax.block_until_ready(jax.jit(as_jax(Broken("wide")))(jnp.ones((4, 5))))


class Fixed(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result(x)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_what_is_no_classifier_is_refused(wrap):
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got function"):
        as_jax(small_cnn)
    with pytest.raises(TypeError, match="must return a tensor, got tuple"):
        wrap(as_jax(Fixed(lambda x: (x, x))))(jnp.ones((4, 5)))
    with pytest.raises(ValueError, match="must return one row for each of 2 inputs"):
        wrap(as_jax(Fixed(lambda x: x.sum())))(jnp.ones((4, 5)))
    with pytest.raises(TypeError, match="a model takes a floating-point batch"):
        wrap(as_jax(small_cnn()))(jnp.ones((4, 5), int))
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="does not depend on its input differentiably"):
        jax.block_until_ready(wrap(jax.grad(partial(loss, as_jax(Fixed(lambda x: x.detach())))))(jnp.ones((4, 5))))


def test_derivatives_that_are_not_there_say_so():
    f, x = as_jax(small_cnn()), images(1)
    with pytest.raises(NotImplementedError, match="second derivatives are not available"):
        jax.jacrev(jax.grad(partial(loss, f)))(x)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(f, (x,), (x,))


def test_compiled_code_on_a_platform_without_callbacks_names_the_way(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(NotImplementedError, match=r"use jaxsmooth.stream_votes"):
        jax.jit(as_jax(small_cnn()))(images())
    assert as_jax(small_cnn())(images()).shape == (4, 3)


@needs_proc
@pytest.mark.parametrize("megabytes", [1, 50])
def test_two_thousand_iterations_neither_hang_nor_leak(megabytes):
    module = Fixed(lambda x: x[:, :2] + 1)
    x = jnp.zeros((4, megabytes * 65536))

    @jax.jit
    def run(x):
        step = lambda carry, _: (carry.at[:, :2].set(as_jax(module)(carry)), None)  # noqa: E731
        return jax.lax.scan(step, x, length=2000)[0]

    run(x).block_until_ready()
    before = reset_peak()
    assert_same(run(x)[:, :2], np.full((4, 2), 2000))
    assert peak() - before < 150


@pytest.mark.parametrize("driver", [jaxsmooth.count_votes, jaxsmooth.stream_votes])
def test_votes_of_a_module_and_of_the_same_model_in_jax(key, driver):
    module = nn.Linear(5, 3)
    weight, bias = (jnp.asarray(p.detach().numpy()) for p in (module.weight, module.bias))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)
    votes = driver(as_jax(module), jaxsmooth.Gaussian(0.5), key, x, n=500, batch_size=64)
    native = jaxsmooth.count_votes(lambda x: x @ weight.T + bias[None], jaxsmooth.Gaussian(0.5), key, x, n=500)
    # Both see the same noise. A score that rounds differently changes a vote only where two scores tie to 1e-6.
    assert int(jnp.abs(votes - native).sum()) <= 4
    assert_same(votes, jaxsmooth.count_votes(as_jax(module), jaxsmooth.Gaussian(0.5), key, x, n=500, batch_size=64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_goes_through_the_host_on_a_gpu():
    module, x = small_cnn().cuda(), images()
    f = jax.jit(as_jax(module))
    f(x).block_until_ready()
    with jax.transfer_guard("disallow"):
        f(x).block_until_ready()
        as_jax(module)(x).block_until_ready()


def test_importing_bridges_loads_no_framework():
    code = "import sys, bridges; print(sorted({'torch', 'tensorflow', 'flax', 'jax', 'art'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
