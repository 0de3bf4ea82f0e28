"BertAdam against its formula and a recorded trace; schedules; clipping; saving and resuming."

import copy
import io
import math

import pytest
import torch

from sgmim.core import ConfigError
from sgmim.training.optim import BertAdam, warmup_cosine, warmup_linear

GOLDEN = torch.tensor([[1, -2], [0.57405, -1.573046], [0.15263, -1.137745], [-0.201973, -0.732731]])


def formula(p, grads, lrs, b1=0.9, b2=0.999, eps=1e-6, decay=0.01):
    p, m, v = p.clone().double(), 0, 0
    for g, lr in zip(grads, lrs, strict=True):
        g = g.double()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - lr * (m / (v**0.5 + eps) + decay * p)
    return p


def descend(opt, p, n):
    for _ in range(n):
        opt.zero_grad()
        ((p**2).sum() / 2).backward()
        opt.step()


def start():
    return torch.nn.Parameter(torch.tensor([1.0, -2.0]))


def test_golden_trace():
    p = start()
    opt = BertAdam([p], lr=0.1, warmup=0.1, t_total=10)
    for want in GOLDEN:
        descend(opt, p, 1)
        torch.testing.assert_close(p.detach(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("schedule", [warmup_linear, warmup_cosine])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.5])
@pytest.mark.parametrize(
    "kwargs", [{}, dict(betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1), dict(weight_decay=0)]
)
def test_against_the_formula(schedule, warmup, kwargs):
    g = torch.Generator().manual_seed(0)
    ps = [torch.nn.Parameter(torch.randn(s, generator=g)) for s in [(4, 3), (5,), ()]]
    first, grads = [p.detach().clone() for p in ps], []
    opt = BertAdam(ps, lr=0.03, warmup=warmup, t_total=20, schedule=schedule, **kwargs)
    for _ in range(20):
        grads.append([torch.randn(p.shape, generator=g) for p in ps])
        for p, x in zip(ps, grads[-1], strict=True):
            p.grad = x.clone()
        opt.step()
    b1, b2 = kwargs.get("betas", (0.9, 0.999))
    lrs = [0.03 * schedule(i / 20, warmup) for i in range(20)]
    for i, p in enumerate(ps):
        want = formula(
            first[i],
            [x[i] for x in grads],
            lrs,
            b1,
            b2,
            kwargs.get("eps", 1e-6),
            kwargs.get("weight_decay", 0.01),
        )
        torch.testing.assert_close(p.detach().double(), want, atol=2e-5, rtol=1e-5)


def test_decay_falls_on_every_parameter():
    bias = torch.nn.Parameter(torch.ones(3))
    bias.grad = torch.zeros(3)
    BertAdam([bias], lr=0.1).step()
    torch.testing.assert_close(bias.detach(), torch.full((3,), 1 - 0.1 * 0.01))


def test_decay_is_not_lost_at_the_papers_rate():
    "float32 holds no 1 - 2.5e-8: decay as a step of its own would leave the weights as they are."
    p, g = torch.nn.Parameter(torch.ones(2, 10_000)), torch.Generator().manual_seed(0)
    opt = BertAdam([p], lr=2.5e-6)
    for _ in range(200):
        x = torch.randn(10_000, generator=g)
        p.grad = torch.stack([x, -x])  # in the mean nothing but the decay is left
        opt.step()
    assert 1 - p.detach().double().mean().item() == pytest.approx(200 * 2.5e-6 * 0.01, rel=0.05)


@pytest.mark.parametrize("odd", ["gradient", "parameter", "moments"])
def test_memory_layout_does_not_matter(odd):
    torch.manual_seed(0)
    first, gradients = torch.randn(30, 40), torch.randn(3, 30, 40)

    def turned(x):
        return x.t().contiguous().t()

    a = torch.nn.Parameter(first.clone())
    b = torch.nn.Parameter(turned(first.clone()) if odd == "parameter" else first.clone())
    one, other = BertAdam([a], lr=0.1), BertAdam([b], lr=0.1)
    for g in gradients:
        a.grad, b.grad = g.clone(), turned(g.clone()) if odd == "gradient" else g.clone()
        if odd == "moments" and other.state:
            other.state[b].update({k: turned(v) for k, v in other.state[b].items()})
        one.step()
        other.step()
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_decay_is_not_in_the_moments():
    p = start()
    p.grad = torch.ones(2)
    opt = BertAdam([p], lr=0.1)
    opt.step()
    torch.testing.assert_close(opt.state[p]["m"], torch.full((2,), 0.1))
    torch.testing.assert_close(opt.state[p]["v"], torch.full((2,), 0.001))


def test_no_bias_correction():
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    BertAdam([p], lr=1.0).step()
    assert p.item() == pytest.approx(-0.1 / (0.001**0.5 + 1e-6), rel=1e-5)  # Adam would give -1


def test_first_update_moves_nothing_but_the_moments():
    p = start()
    opt = BertAdam([p], lr=1e9, t_total=100)
    descend(opt, p, 1)
    assert p.tolist() == [1, -2] and opt.state[p]["m"].abs().min() > 0


def test_beyond_the_end_nothing_moves():
    p = start()
    opt = BertAdam([p], lr=0.1, t_total=3)
    descend(opt, p, 3)
    last = p.tolist()
    descend(opt, p, 5)
    assert p.tolist() == last and opt.lr_now() == [0]


def test_without_gradient_untouched_and_clock_runs():
    a, b, frozen = start(), start(), start().requires_grad_(False)
    opt = BertAdam([a, b, frozen], lr=0.1, t_total=10)
    descend(opt, a, 5)
    assert (
        b.tolist() == frozen.tolist() == [1, -2] and b not in opt.state and opt.param_groups[0]["step"] == 5
    )
    opt.zero_grad()
    opt.step()  # nobody has a gradient: fine
    assert opt.param_groups[0]["step"] == 6


def test_zero_gradient_is_not_no_gradient():
    p = start()
    p.grad = torch.zeros(2)
    BertAdam([p], lr=0.1).step()
    torch.testing.assert_close(p.detach(), torch.tensor([1.0, -2.0]) * 0.999)


def test_groups_have_their_own_rates():
    a, b = start(), start()
    opt = BertAdam([dict(params=[a], lr=0.1), dict(params=[b], lr=0.2, weight_decay=0.0)], t_total=10)
    for _ in range(2):
        for p in (a, b):
            p.grad = torch.ones(2)
        opt.step()
    assert opt.lr_now() == pytest.approx([0.1 * 0.8 / 0.9, 0.2 * 0.8 / 0.9])
    ones = [torch.ones(2)] * 2
    torch.testing.assert_close(
        a.detach().double(), formula(torch.tensor([1.0, -2]), ones, [0, 0.1]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        b.detach().double(), formula(torch.tensor([1.0, -2]), ones, [0, 0.2], decay=0), atol=1e-5, rtol=0
    )


def test_group_added_later():
    a, b = start(), start()
    opt = BertAdam([a], lr=0.1)
    descend(opt, a, 3)
    opt.add_param_group(dict(params=[b]))
    descend(opt, b, 1)
    assert [g["step"] for g in opt.param_groups] == [4, 1] and b.tolist() != [1, -2]


def test_rate_from_outside():
    p = start()
    opt = BertAdam([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: warmup_linear(step / 10))
    for want in GOLDEN:
        descend(opt, p, 1)
        scheduler.step()
        torch.testing.assert_close(p.detach(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_resume_is_exact(at):
    straight, p = start(), start()
    descend(BertAdam([straight], lr=0.1, t_total=10), straight, 10)
    opt = BertAdam([p], lr=0.1, t_total=10)
    descend(opt, p, at)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    again = BertAdam([p], lr=99.0, t_total=7, warmup=0.3)
    again.load_state_dict(torch.load(file, weights_only=True))  # plain tensors and numbers only
    descend(again, p, 10 - at)
    assert p.tolist() == straight.tolist()


def test_state_dict_is_not_aliased_after_deepcopy():
    p = start()
    opt = BertAdam([p], lr=0.1)
    descend(opt, p, 2)
    saved = copy.deepcopy(opt.state_dict())
    before = saved["state"][0]["m"].clone()
    descend(opt, p, 2)
    assert torch.equal(saved["state"][0]["m"], before)


def test_closure():
    p = start()
    opt = BertAdam([p], lr=0.1)

    def closure():
        opt.zero_grad()
        loss = (p**2).sum() / 2
        loss.backward()
        return loss

    assert opt.step(closure).item() == 2.5 and p.tolist() != [1, -2]


def test_mixed_precisions_in_one_group():
    ps = [torch.nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
    for p in ps:
        p.grad = torch.ones_like(p)
    BertAdam(ps, lr=0.01).step()
    for p in ps:
        assert p.float().detach()[0].item() == pytest.approx(1 - 0.01 * 3.172, abs=0.01)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], device="cuda"))
    descend(BertAdam([p], lr=0.1, t_total=10), p, 4)
    torch.testing.assert_close(p.detach().cpu(), GOLDEN[3], atol=1e-5, rtol=0)


def test_it_trains():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
    x = torch.randn(64, 4)
    y = x[:, :1] * x[:, 1:2]
    opt, losses = BertAdam(net.parameters(), lr=0.01, t_total=300), []
    for _ in range(300):
        loss = ((net(x) - y) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0).isfinite()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    "kwargs, text",
    [
        (dict(lr=-1), "lr must be"),
        (dict(lr=math.nan), "lr must be"),
        (dict(warmup=1), "warmup"),
        (dict(warmup=-0.1), "warmup"),
        (dict(t_total=0), "t_total"),
        (dict(betas=(1, 0.9)), "betas"),
        (dict(betas=(0.9, -1)), "betas"),
        (dict(eps=0), "eps"),
        (dict(weight_decay=-1), "weight_decay"),
    ],
)
def test_bad_settings(kwargs, text):
    with pytest.raises(ConfigError, match=text):
        BertAdam([start()], **kwargs)


def test_bad_settings_of_a_group():
    with pytest.raises(ConfigError, match="lr must be"):
        BertAdam([dict(params=[start()], lr=-1)])


# ---- schedules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [warmup_linear, warmup_cosine])
@pytest.mark.parametrize("w", [0, 0.1, 0.3, 0.99])
def test_schedules(f, w):
    xs = [i / 1000 for i in range(1301)]
    ys = [f(x, w) for x in xs]
    assert all(0 <= y <= 1 for y in ys) and max(ys) == pytest.approx(1, abs=1e-6) and ys[0] == (0 if w else 1)
    assert all(y == pytest.approx(0, abs=1e-9) for x, y in zip(xs, ys, strict=True) if x >= 1)
    up = [y for x, y in zip(xs, ys, strict=True) if x < w]
    down = [y for x, y in zip(xs, ys, strict=True) if x >= w]
    assert up == sorted(up) and down == sorted(down, reverse=True)


@pytest.mark.parametrize("f", [warmup_linear, warmup_cosine])
def test_schedules_refuse(f):
    for w in (-0.1, 1, 2):
        with pytest.raises(ConfigError):
            f(0.5, w)
