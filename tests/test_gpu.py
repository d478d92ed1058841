"""What holds on a GPU: the same noise, votes and certificates as on the CPU, and PyTorch on JAX's own memory."""

import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsmooth
from tests.bridges.reference import Keeps, watch_gradients, watch_scores

torch = pytest.importorskip("torch")
bridge = pytest.importorskip("bridges.pytorch")
modules = pytest.importorskip("tests.bridges.modules")
TorchBackend = pytest.importorskip("bridges.pytorch.backend").TorchBackend
nn, images, loss, network = torch.nn, modules.images, modules.loss, modules.network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        jax.default_backend() != "gpu" or not torch.cuda.is_available(), reason="needs a GPU, in JAX and in PyTorch"
    ),
]
EAGER_AND_JIT = pytest.mark.parametrize("wrap", modules.WRAPS.values(), ids=modules.WRAPS)


def cpu():
    return jax.devices("cpu")[0]


def linear(x):
    return x.reshape(len(x), -1) @ jnp.asarray(np.random.default_rng(1).normal(size=(64, 3)), jnp.float32)


class Module(modules.TorchModule):
    """A function as a module that is on the GPU."""

    def __init__(self, function):
        super().__init__(function)
        self.unused = nn.Parameter(torch.zeros(1, device="cuda"))


NOISES = (
    jaxsmooth.Gaussian(0.5),
    jaxsmooth.Laplace(0.5),
    jaxsmooth.Uniform(0.5),
    jaxsmooth.LatticeGaussian(0.5, 2.0**-8),
)


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_noise_is_the_cpu_s_but_for_rounding(noise, key):
    draw = jax.jit(lambda key: noise.sample(key, (1_000_000,)))
    ours, theirs = np.asarray(draw(key)), np.asarray(draw(jax.device_put(key, cpu())))
    if isinstance(noise, jaxsmooth.LatticeGaussian):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("n", [1, 10, 1000, 100_000])
def test_certificates_of_the_same_counts_are_the_cpu_s(n):
    top = np.unique(np.linspace(0, n, 501).astype(np.int32))
    counts = np.stack([top, n - top], 1)
    for scale in (0.1, 0.25, 1.0, 3.3):
        results = []
        for place in (jax.devices()[0], cpu()):
            with jax.default_device(place):
                decide = jax.jit(partial(jaxsmooth.certificate, noise=jaxsmooth.Gaussian(scale), alpha=0.001))
                results.append(decide(jaxsmooth.Votes(selection=jnp.asarray(counts), counts=jnp.asarray(counts), n=n)))
        np.testing.assert_array_equal(results[0].label, results[1].label)
        np.testing.assert_array_equal(results[0].radius, results[1].radius)


def test_votes_are_the_cpu_s_but_for_ties(key):
    x, noise = images(8), jaxsmooth.Gaussian(0.5)
    ours = np.asarray(jaxsmooth.count_votes(linear, noise, key, x, n=2000))
    streamed = np.asarray(jaxsmooth.stream_votes(jax.jit(linear), noise, key, x, n=2000))
    with jax.default_device(cpu()), jax.default_matmul_precision("float32"):
        put = partial(jax.device_put, device=cpu())
        theirs = np.asarray(jaxsmooth.count_votes(linear, noise, put(key), put(x), n=2000))
    # A product on tensor cores has 10 bits: votes that tie to 1e-3 may differ, which are fewer than one in 500.
    assert np.abs(ours - theirs).sum() <= 2 * 16_000 / 500
    assert np.abs(ours - streamed).sum() <= 2 * 16_000 / 500


@EAGER_AND_JIT
def test_module_runs_on_jax_s_memory_without_the_host(wrap):
    seen = []
    module, x = Module(lambda x: (seen.append(x.data_ptr()), x[:, 0, 0, :3] * 2)[1]), images()
    f = wrap(bridge.as_jax(module))
    f(x).block_until_ready()
    with jax.transfer_guard("disallow"):
        result = f(x).block_until_ready()
    assert result.devices() == x.devices()
    assert seen[-1] == x.unsafe_buffer_pointer()
    np.testing.assert_array_equal(result, x[:, 0, 0, :3] * 2)


@EAGER_AND_JIT
def test_forward_and_gradient_are_pytorch_s(wrap):
    module, x = network().cuda(), images()
    leaf = torch.tensor(np.asarray(x), device="cuda", requires_grad=True)
    expected = module.eval()(leaf)
    expected.square().sum().backward()
    result, gradient = wrap(bridge.as_jax(module))(x), wrap(jax.grad(partial(loss, bridge.as_jax(module))))(x)
    np.testing.assert_allclose(result, expected.detach().cpu(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.cpu(), rtol=1e-4, atol=1e-6)
    many = images(24).reshape(2, 3, 4, 1, 8, 8)
    mapped = wrap(jax.vmap(jax.vmap(bridge.as_jax(module))))(many)
    scanned = wrap(lambda x: jax.lax.map(bridge.as_jax(module), x))(many.reshape(6, 4, 1, 8, 8))
    np.testing.assert_allclose(mapped.reshape(24, 3), scanned.reshape(24, 3), rtol=1e-2, atol=1e-3)


@EAGER_AND_JIT
def test_a_module_that_writes_to_its_input_or_keeps_it_does_not_share_jax_s_memory(wrap):
    x = -jnp.ones((4, 50_000))
    result, after = wrap(lambda x: (bridge.as_jax(Module(lambda x: x.relu_()))(x), x + 0))(x)
    assert (float(result.sum()), float(after.sum())) == (0.0, -200_000.0)
    kept = []
    f = wrap(lambda x: bridge.as_jax(Module(lambda x: (kept.append(x), x[:, :2])[1]))(x * 2))
    result = f(x)
    for i in range(20):
        f(jnp.full((4, 50_000), float(i)))
    views = [tensor for tensor in kept if len(tensor) == 4]
    assert torch.equal(views[0], torch.full_like(views[0], -2.0))
    np.testing.assert_array_equal(result, np.full((4, 2), -2.0))


@EAGER_AND_JIT
def test_what_pytorch_was_given_before_happens_before(wrap):
    module, x = nn.Linear(64, 3).cuda(), images().reshape(4, 64)
    f = wrap(bridge.as_jax(module))
    before = np.asarray(f(x))
    for _ in range(5):
        torch.cuda._sleep(200_000_000)  # a tenth of a second in which the update waits
        with torch.no_grad():
            module.bias += 1.0
    np.testing.assert_allclose(f(x), before + 5, rtol=1e-5)


@EAGER_AND_JIT
def test_memory_is_not_used_again_before_the_module_has_read_it(wrap):
    def slow(x):
        torch.cuda._sleep(20_000_000)
        return x[:, :2] + 1

    f = wrap(bridge.as_jax(Module(slow)))
    results = []
    for i in range(20):
        results.append(f(jnp.full((4, 1_000_000), float(i))))
        jnp.full((4, 1_000_000), -1.0)  # goes where the input was, if that was given back
    np.testing.assert_array_equal([r[0, 0] for r in results], np.arange(20) + 1.0)


@EAGER_AND_JIT
@pytest.mark.parametrize(("array", "module"), [("cpu", "cuda"), ("gpu", "cpu")])
def test_array_and_module_on_different_devices(wrap, array, module):
    net, x = network().to(module), jax.device_put(images(), jax.devices(array)[0])
    f = bridge.as_jax(net)
    result, gradient = wrap(f)(x), wrap(jax.grad(partial(loss, f)))(x)
    assert result.devices() == gradient.devices() == x.devices()
    with torch.no_grad():
        expected = net.eval()(torch.tensor(np.asarray(x), device=module)).cpu()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_errors_arrive_and_leave_the_process_usable():
    def broken(x):
        if len(x) == 4:
            raise KeyError("no such layer: conv9")
        return x[:, :2]

    with pytest.raises(jax.errors.JaxRuntimeError, match="no such layer: conv9"):
        jax.block_until_ready(jax.jit(bridge.as_jax(Module(broken)))(jnp.ones((4, 5))))
    assert jax.jit(bridge.as_jax(network().cuda()))(images()).shape == (4, 3)


def test_two_thousand_iterations_neither_hang_nor_leak():
    f, x = bridge.as_jax(Module(lambda x: x[:, :2] + 1)), jnp.zeros((4, 65_536))

    @jax.jit
    def run(x):
        return jax.lax.scan(lambda carry, _: (carry.at[:, :2].set(f(carry)), None), x, length=2000)[0]

    run(x).block_until_ready()
    before = torch.cuda.memory_allocated()
    np.testing.assert_array_equal(run(x)[:, :2], np.full((4, 2), 2000.0))
    assert torch.cuda.memory_allocated() - before < 2**20


def classifier(net, **settings):
    common = {"input_shape": (1, 8, 8), "nb_classes": 3, "scale": 0.5, "seed": 3, "preprocessing": (0.1, 2.0)}
    return bridge.PyTorchRandomizedSmoothing(net, nn.CrossEntropyLoss(), **common, **settings)


def check_against_the_cpu(on_gpu, make_on_cpu, backend, monkeypatch):
    """Compare votes and gradients of a class on the GPU with those of one that is made where JAX is on the CPU.

    Return the batches that were scored on the GPU one by one. They, and those of gradients, stay there.
    """
    x, y = np.asarray(images(8)), np.arange(8) % 3
    calls = (
        lambda classifier: classifier.certify(x, 1000),
        lambda classifier: classifier.predict(x),
        lambda classifier: classifier.loss_gradient(x, y),
        lambda classifier: classifier.loss_gradient(x, y, sampling=True),
        lambda classifier: classifier.class_gradient(x, sampling=True),
    )
    # Tensor cores round to 10 bits, by which a ReLU may switch in one copy of 32.
    with jax.default_matmul_precision("float32"):
        with monkeypatch.context() as watching:
            scored, differentiated = watch_scores(backend, watching), watch_gradients(backend, watching)
            (label, radius), predicted, *gradients = [call(on_gpu) for call in calls]
        with jax.default_device(cpu()):
            on_cpu = make_on_cpu()
            (expected, expected_radius), expected_predicted, *expected_gradients = [call(on_cpu) for call in calls]
    assert differentiated
    assert all(isinstance(batch, jax.Array) for batch in scored + differentiated)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_allclose(radius, expected_radius, atol=0.02)  # a few votes of 1,000
    np.testing.assert_array_equal(predicted, expected_predicted)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.002 * np.abs(theirs).max())
    return scored


def check_training(trained, folder):
    x, y = np.asarray(images(8)), np.arange(8) % 3
    before = trained.compute_loss(x, y, "mean")
    trained.fit(x, y, batch_size=4, nb_epochs=30)
    assert trained.compute_loss(x, y, "mean") < before
    trained.save("net", folder)
    scores = trained.compute_loss(x, y)
    trained.reset()
    trained.load("net", folder)
    np.testing.assert_allclose(trained.compute_loss(x, y), scores, rtol=1e-4)


def test_pytorch_class_votes_and_differentiates_on_the_gpu_as_on_the_cpu(monkeypatch):
    net = network().cuda().eval()
    # The check of an instance's first call is on arrays of NumPy.
    on_cpu, on_gpu = classifier(copy.deepcopy(net), device_type="cpu"), classifier(net, check=False)
    assert check_against_the_cpu(on_gpu, lambda: on_cpu, TorchBackend, monkeypatch)
    assert next(net.parameters()).is_cuda


def test_pytorch_class_trains_on_the_gpu(tmp_path):
    net = network().cuda().eval()
    check_training(classifier(net, optimizer=torch.optim.Adam(net.parameters(), 0.01)), tmp_path)


def flax_classifier(**settings):
    optax, flax = pytest.importorskip("optax"), pytest.importorskip("bridges.flax")
    net = pytest.importorskip("tests.bridges.flax_networks").LinenNetwork(3, None)
    return flax.FlaxRandomizedSmoothing(
        net,
        optax.softmax_cross_entropy_with_integer_labels,
        (1, 8, 8),
        3,
        variables=jax.device_get(net.init(jax.random.key(5), images(1))),
        optimizer=optax.adam(0.01),
        scale=0.5,
        seed=3,
        preprocessing=(0.1, 2.0),
        **settings,
    )


@pytest.mark.parametrize("settings", [{}, {"postprocessing_defences": Keeps()}], ids=["one program", "batch by batch"])
def test_flax_class_votes_and_differentiates_on_the_gpu_as_on_the_cpu(settings, monkeypatch):
    backend = pytest.importorskip("bridges.flax.backend").FlaxBackend
    on_gpu = flax_classifier(check=False, **settings)
    scored = check_against_the_cpu(on_gpu, flax_classifier, backend, monkeypatch)
    assert bool(scored) == bool(settings)


def test_flax_class_trains_on_the_gpu(tmp_path):
    check_training(flax_classifier(), tmp_path)


def test_memory_does_not_grow_with_n():
    x, smoothed, peaks = np.asarray(images(2)), classifier(network().cuda()), []
    for n in (2**13, 2**17):  # 2n rows are full batches
        torch.cuda.reset_peak_memory_stats()
        smoothed.certify(x, n)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] - peaks[0] < 2**20


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.lstm(x[:, 0])[0][:, -1])


def test_recurrent_layers_have_gradients_in_evaluation_mode():
    """CuDNN has none: "cudnn RNN backward can only be called in training mode"."""
    x, y = np.asarray(images(4)), np.arange(4) % 3
    torch.manual_seed(0)
    on_gpu = classifier(Recurrent().eval())
    own = Recurrent().eval()
    own.load_state_dict({name: value.cpu() for name, value in on_gpu.model.state_dict().items()})
    on_cpu = classifier(own, device_type="cpu")
    for sampling in (False, True):
        expected = on_cpu.loss_gradient(x, y, sampling=sampling)
        np.testing.assert_allclose(
            on_gpu.loss_gradient(x, y, sampling=sampling), expected, rtol=0.05, atol=0.002 * np.abs(expected).max()
        )
