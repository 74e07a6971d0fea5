import pytest
import torch

from genimg.losses.few_steps import AdaptiveLoss, ConsistencyLoss

OUTPUT, TARGET = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_adaptive_loss_is_the_squared_error_divided_by_its_power():
    losses, errors = AdaptiveLoss(power=0.75, offset=1e-3).of_images(OUTPUT, TARGET)
    for i, (loss, error) in enumerate(zip(losses, errors, strict=True)):
        total = ((OUTPUT[i] - TARGET[i]) ** 2).sum().item()
        assert loss.item() == pytest.approx(total / (total + 1e-3) ** 0.75, rel=1e-5)
        assert error.item() == pytest.approx(total / 75, rel=1e-5)


def test_the_divisor_has_no_gradient():
    output = OUTPUT.float().requires_grad_()
    loss, _ = AdaptiveLoss(power=1.0, offset=1e-3).of_images(output, TARGET.float())
    loss.sum().backward()
    total = (OUTPUT - TARGET).square().sum(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(output.grad, (2.0 * (OUTPUT - TARGET) / (total + 1e-3)).float(), rtol=1e-4, atol=1e-6)


def test_a_power_of_a_half_has_the_gradient_of_the_pseudo_huber_loss():
    output, same = OUTPUT.float().requires_grad_(), OUTPUT.float().requires_grad_()
    AdaptiveLoss(power=0.5, offset=4.0).of_images(output, TARGET.float())[0].sum().backward()
    huber = 2.0 * ((same - TARGET.float()).square().sum(dim=(1, 2, 3)) + 4.0).sqrt()
    huber.sum().backward()
    torch.testing.assert_close(output.grad, same.grad)


@pytest.mark.parametrize(("settings", "name"), [
    ({"power": 1.5, "offset": 1e-3}, "power=1.5"), ({"power": -0.1, "offset": 1e-3}, "power=-0.1"),
    ({"power": 0.75, "offset": 0.0}, "offset=0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        AdaptiveLoss(**settings)


@pytest.mark.parametrize("offset", [0.0, 0.03])
def test_the_consistency_loss_is_the_pseudo_huber_distance(offset):
    losses = ConsistencyLoss(offset=offset).of_images(OUTPUT, TARGET)
    for i, loss in enumerate(losses):
        total = ((OUTPUT[i] - TARGET[i]) ** 2).sum().item()
        assert loss.item() == pytest.approx((total + offset**2) ** 0.5 - offset, rel=1e-5)


def test_equal_estimates_have_a_finite_gradient():
    output = OUTPUT.float().requires_grad_()
    ConsistencyLoss(offset=0.0).of_images(output, output.detach().clone()).sum().backward()
    assert torch.equal(output.grad, torch.zeros_like(output))


def test_a_negative_offset_is_refused():
    with pytest.raises(ValueError, match="offset=-1"):
        ConsistencyLoss(offset=-1.0)
