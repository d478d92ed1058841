"""The objectives of `jaxsmooth.losses` as their papers' authors wrote them, transcribed to float64 PyTorch.

Each takes a model, clean inputs, labels and the noise `[m, N, *event]`, and returns the loss with its graph. Sources:
Hadisalman/smoothing-adversarial (`attacks.py`, `train_pgd.py`), jh-jeong/smoothing-consistency (`consistency.py`,
`train_stab.py`), RuntianZ/macer (`macer.py`), jh-jeong/smoothmix (`train.py`).
"""

import torch
from torch.distributions.normal import Normal
from torch.nn import functional


def gaussian(model, x, y, noise):
    return functional.cross_entropy(model(x + noise[0]), y)


def stability(model, x, y, noise, lambda_=2.0):
    clean, noisy = model(x), model(x + noise[0])
    change = -(functional.softmax(clean, 1) * functional.log_softmax(noisy, 1)).sum(1).mean()
    return functional.cross_entropy(clean, y) + lambda_ * change


def consistency(model, x, y, noise, lambda_=10.0, eta=0.5):
    logits = [model(x + e) for e in noise]
    mean = sum(functional.softmax(each, 1) for each in logits) / len(logits)
    divergence = sum(
        functional.kl_div(functional.log_softmax(each, 1), mean, reduction="none").sum(1) for each in logits
    ) / len(logits)
    entropy = -(mean * mean.clamp(min=1e-20).log()).sum(1)
    return (
        functional.cross_entropy(torch.cat(logits), y.repeat(len(noise)))
        + (lambda_ * divergence + eta * entropy).mean()
    )


def macer(model, x, y, noise, sigma, lambda_=12.0, beta=16.0, gamma=8.0):
    m = Normal(0.0, 1.0)
    outputs = torch.stack([model(x + e) for e in noise], 1)
    log_softmax = torch.log(functional.softmax(outputs, 2).mean(1) + 1e-10)
    classification = functional.nll_loss(log_softmax, y, reduction="sum")
    top2 = torch.topk(functional.softmax(outputs * beta, 2).mean(1), 2)
    correct = top2[1][:, 0] == y
    out0, out1 = top2[0][correct, 0], top2[0][correct, 1]
    radius = m.icdf(out1) - m.icdf(out0)
    kept = ~torch.isnan(radius) & ~torch.isinf(radius) & (radius.abs() <= gamma)
    robustness = (m.icdf(out1[kept]) - m.icdf(out0[kept]) + gamma).sum() * sigma / 2
    return (classification + lambda_ * robustness) / len(x)


def _length(v):
    return v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))


def _smoothed(model, x, noise):
    return (sum(functional.softmax(model(x + e), 1) for e in noise) / len(noise)).clamp(min=1e-20).log()


def _ascent(model, x, y, noise):
    point = x.detach().requires_grad_()
    return torch.autograd.grad(functional.nll_loss(_smoothed(model, point, noise), y, reduction="sum"), point)[0]


def pgd(model, x, y, noise, epsilon, steps, clip=(0, 1)):
    delta = torch.zeros_like(x)
    for _ in range(steps):
        gradient = _ascent(model, x + delta, y, noise)
        delta = delta + 2 * epsilon / steps * gradient / _length(gradient)
        delta = (x + delta).clamp(*clip) - x
        delta = delta.renorm(2, 0, epsilon)
    return x + delta


def ddn(model, x, y, noise, epsilon, steps, clip=(0, 1), levels=256):
    low, high = clip
    delta, best = torch.zeros_like(x), torch.zeros_like(x)
    norm = torch.full((len(x),), float(epsilon), dtype=x.dtype)
    worst = _length(torch.maximum(x - low, high - x)).flatten()
    best_l2 = worst.clone()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=0.01)
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        l2 = _length(delta).flatten()
        predicted = torch.stack([model(x + delta + e).argmax(1) for e in noise], 1).mode(1)[0]
        adversarial = predicted != y
        better = adversarial & (l2 < best_l2)
        best_l2[better], best[better] = l2[better], delta[better]
        gradient = _ascent(model, x + delta, y, noise)
        delta = delta + optimizer.param_groups[0]["lr"] * gradient / _length(gradient)
        norm = torch.minimum(norm * (1 - (2 * adversarial.to(x.dtype) - 1) * 0.05), worst)
        delta = delta * norm.view(-1, *[1] * (x.ndim - 1)) / _length(delta)
        unit = (x + delta - low) / (high - low)
        delta = (low + (high - low) * (unit * (levels - 1)).round() / (levels - 1)).clamp(low, high) - x
    best = best.renorm(2, 0, epsilon) / (high - low)
    return x + (high - low) * (best * (levels - 1)).round() / (levels - 1)


def smoothadv(model, x, y, noise, epsilon=0.5, steps=2, attack=pgd, clip=(0, 1)):
    point = attack(model, x, y, noise, epsilon, steps, clip).detach()
    return functional.cross_entropy(torch.cat([model(point + e) for e in noise]), y.repeat(len(noise)))


def smoothmix_points(model, x, y, noise, alpha, steps, mix_step, maxnorm_s, maxnorm, clip=(0, 1)):
    def project(point, most):
        if most is not None:
            point = x + (point - x).renorm(2, 0, most)
        return point.clamp(*clip)

    init = point = x
    for i in range(steps):
        if i == mix_step:
            init = point
        gradient = _ascent(model, point, y, noise)
        point = project(point + alpha * gradient / (_length(gradient) + 1e-8), maxnorm)
    return project(init, alpha * mix_step if maxnorm_s is None else maxnorm_s), point


def smoothmix(
    model,
    x,
    y,
    noise,
    lam,
    eta=5.0,
    alpha=1.0,
    steps=4,
    mix_step=0,
    maxnorm_s=None,
    maxnorm=None,
    clip=(0, 1),
):
    ends = smoothmix_points(model, x, y, noise, alpha, steps, mix_step, maxnorm_s, maxnorm, clip)
    return smoothmix_loss(model, y, noise, lam, *ends, eta)


def smoothmix_loss(model, y, noise, lam, clean, adversarial, eta):
    m = len(noise)
    logits = model(torch.cat([clean + e for e in noise]))
    mean = sum(functional.softmax(each, 1) for each in logits.chunk(m)) / m
    share = lam.view(-1, *[1] * (clean.ndim - 1))
    mixture = (1 - share) * clean + share * adversarial
    target = (1 - lam[:, None]) * mean + lam[:, None] / mean.shape[1]
    mixed = functional.log_softmax(model(torch.cat([mixture + e for e in noise])), 1)
    correct = (mean.argmax(1) == y).to(clean.dtype).repeat(m)
    divergence = functional.kl_div(mixed, target.repeat(m, 1), reduction="none").sum(1)
    xent = functional.cross_entropy(logits, y.repeat(m), reduction="none")
    return xent.mean() + eta * (correct * divergence).mean()
