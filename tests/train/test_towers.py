"""The towers: parallel form, step, batching, thermometer."""

from __future__ import annotations

import pytest
import torch

from train.scan import scan, scan_loop
from train.towers import Shape, Thermometer, Towers

SHAPE = Shape(items=50, categories=4, brands=3)


def towers(shape: Shape = SHAPE) -> Towers:
    torch.manual_seed(0)
    made = Towers(shape).eval()
    for thermometer in (made.user.gaps, made.user.values):
        torch.nn.init.normal_(thermometer.increments, std=0.1)  # as if trained
    return made


def events(users: int, length: int, seed: int = 1) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    codes = [torch.randint(0, top, (users, length), generator=g) for top in (8, 32, 16)]
    return torch.randn(users, length, SHAPE.dim, generator=g) * 0.1, *codes


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 65, 200])
def test_scan_equals_the_loop(length: int) -> None:
    g = torch.Generator().manual_seed(length)
    decay = torch.rand(3, length, 5, generator=g, dtype=torch.float64)
    drive = torch.randn(3, length, 5, generator=g, dtype=torch.float64)
    torch.testing.assert_close(scan(decay, drive), scan_loop(decay, drive), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
def test_the_gradient_of_the_scan_is_that_of_the_loop(length: int) -> None:
    g = torch.Generator().manual_seed(length)
    shape = (2, length, 3)
    decay = torch.rand(shape, generator=g, dtype=torch.float64, requires_grad=True)
    drive, weight = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    drive.requires_grad_()
    found = torch.autograd.grad((scan(decay, drive) * weight).sum(), (decay, drive))
    wanted = torch.autograd.grad((scan_loop(decay, drive) * weight).sum(), (decay, drive))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


def test_scan_names_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(1, 2, 4\)"):
        scan(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))


@torch.no_grad()
def test_two_hundred_steps_equal_the_parallel_form() -> None:
    user = towers().user
    item, kind, gap, value = events(4, 200)
    item = item.half().float()
    parallel = user(item, kind, gap, value)
    exact, rounded = torch.zeros(4, SHAPE.state_width), torch.zeros(4, SHAPE.state_width).half()
    for t in range(200):
        exact, vector = user.unrounded_step(exact, item[:, t], kind[:, t], gap[:, t], value[:, t])
        rounded, vector16 = user.step(rounded, item[:, t].half(), kind[:, t], gap[:, t], value[:, t])
        assert (vector - parallel[:, t]).abs().max() <= 1e-5
        assert (vector16.float() - parallel[:, t]).abs().max() <= 1e-2
    assert rounded.dtype == vector16.dtype == torch.float16
    assert not torch.equal(exact, rounded.float())


@torch.no_grad()
def test_a_batch_equals_single_users_bit_for_bit() -> None:
    user = towers().user
    item, kind, gap, value = events(33, 20)
    batch = torch.zeros(33, SHAPE.state_width).half()
    singles = list(torch.split(batch, 1))
    for t in range(20):
        columns = (item[:, t].half(), kind[:, t], gap[:, t], value[:, t])
        batch, vectors = user.step(batch, *columns)
        for b in range(33):
            singles[b], vector = user.step(singles[b], *(c[b : b + 1] for c in columns))
            assert torch.equal(vector[0], vectors[b])
    assert torch.equal(torch.cat(singles), batch)


@torch.no_grad()
def test_the_exported_step_takes_any_batch_and_says_the_same() -> None:
    user = towers().user
    item, kind, gap, value = events(9, 1)
    state = torch.randn(9, SHAPE.state_width, generator=torch.Generator().manual_seed(3)).half()
    inputs = (state, item[:, 0].half(), kind[:, 0], gap[:, 0], value[:, 0])
    batch = torch.export.Dim("batch", min=1)

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user = user

        def forward(
            self,
            state: torch.Tensor,
            item: torch.Tensor,
            kind: torch.Tensor,
            gap: torch.Tensor,
            value: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return user.step(state, item, kind, gap, value)

    exported = torch.export.export(Step(), inputs, dynamic_shapes=[{0: batch}] * 5).module()
    for users in (1, 2, 9):
        part = tuple(t[:users] for t in inputs)
        for ours, theirs in zip(user.step(*part), exported(*part), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)  # a unit in float16's last place


@torch.no_grad()
def test_the_past_never_sees_the_future() -> None:
    user = towers().user
    item, kind, gap, value = events(2, 30)
    before = user(item, kind, gap, value)
    item[:, 20:] += 1
    after = user(item, kind, gap, value)
    torch.testing.assert_close(before[:, :20], after[:, :20], atol=1e-6, rtol=0)
    assert (before[:, 20:] - after[:, 20:]).abs().max() > 1e-3


@torch.no_grad()
def test_an_unseen_bucket_means_what_the_one_below_means() -> None:
    scale = Thermometer(8, 4)
    scale.increments[3] = 1.0
    row = scale(torch.arange(8))
    assert torch.equal(row[3:], row[3].expand(5, 4))
    assert not torch.equal(row[2], row[3])
    assert not torch.equal(row[0], row[1])


@torch.no_grad()
def test_text_padding_does_not_count() -> None:
    item = towers().item
    codes = [torch.tensor([1])] * 4
    text = torch.zeros(1, 32, dtype=torch.int64)
    empty = item(*codes, text)
    text[0, 0] = 5
    one = item(*codes, text)
    text[0, 1] = 5  # the mean of twice the same
    assert torch.allclose(one, item(*codes, text), atol=1e-6)
    assert not torch.allclose(one, empty)


def test_missing_content_adds_nothing_and_stays_nothing() -> None:
    item = towers().item
    rows, none = torch.arange(1, 51), torch.zeros(50, dtype=torch.int64)
    text = torch.zeros(50, 32, dtype=torch.int64)
    optimiser = torch.optim.AdamW(item.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (item(rows, none, none, none, text) - 1.0).pow(2).sum().backward()
        optimiser.step()
    assert torch.equal(item(rows, none, none, none, text), item.ids(rows))
    assert not torch.equal(item(rows, none + 1, none, none, text), item.ids(rows))


def test_ids_are_dropped_only_in_training() -> None:
    item = towers(Shape(items=50, categories=4, brands=3, id_dropout=0.5)).item
    rows, text = torch.arange(1, 51), torch.zeros(50, 32, dtype=torch.int64)
    code = torch.zeros(50, dtype=torch.int64)
    seen = item(rows, code, code, code, text)
    never = item(code, code, code, code, text)
    dropped = (item.train()(rows, code, code, code, text) == never).all(1)
    assert 10 < int(dropped.sum()) < 40
    assert not bool((seen == never).all(1).any())


def test_no_parameter_belongs_to_a_user() -> None:
    names = [name for name, p in Towers(SHAPE).named_parameters() if p.shape[0] > 1000]
    assert names == ["item.texts.weight"]


@pytest.mark.parametrize("wrong", [{"items": 0}, {"width": 0}, {"brands": -1}, {"dropout": 1.0}])
def test_a_bad_shape_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Shape(**({"items": 1, "categories": 1, "brands": 1} | wrong))  # type: ignore[arg-type]
