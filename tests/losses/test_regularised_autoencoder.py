import math

import pytest
import torch
from torch import nn

from genimg.losses.likelihoods import Bernoulli, Gaussian
from genimg.losses.regularised_autoencoder import RegularisedLoss, squared_jacobian, squared_weights

SQUARED = Gaussian(scale=0.5**0.5, learnt=False)


def loss(**changes) -> RegularisedLoss:
    settings = {"likelihood": SQUARED, "latent_weight": 0.3, "regulariser": "l2", "regulariser_weight": 0.2}
    return RegularisedLoss(**(settings | changes))


class Linear(nn.Module):
    """A latent [N, 3] as an image of 1x2x2 pixels, with a bias and a normalisation that no regulariser touches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, latent, condition):
        assert condition.shape == (len(latent), 0)
        return self.layer(latent).unflatten(1, (1, 2, 2))


def batch(count: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    image = torch.rand(count, 1, 2, 2, generator=random) * 2 - 1
    return image, torch.randn(count, 3, generator=random).requires_grad_(), torch.empty(count, 0)


def test_without_a_regulariser_it_is_squared_error_and_half_beta_times_the_squares_of_the_latents():
    decoder, (image, latent, condition) = Linear(), batch()
    total, parts = loss(regulariser="none", regulariser_weight=None)(image, latent, decoder, condition)
    with torch.no_grad():
        squared = (decoder(latent, condition).tanh() - image).square().sum().item() / 5
        squares = latent.square().sum().item() / 5
    assert set(parts) == {"reconstruction_nats", "squared_error", "latent_squares"}
    assert parts["squared_error"].item() == pytest.approx(squared, rel=1e-5)
    assert parts["latent_squares"].item() == pytest.approx(squares, rel=1e-5)
    assert total.item() == pytest.approx(squared + 4 * 0.5 * math.log(math.pi) + 0.15 * squares, rel=1e-5)


def test_l2_is_the_sum_of_squares_of_the_weights_alone():
    decoder, (image, latent, condition) = Linear(), batch()
    total, _ = loss()(image, latent, decoder, condition)
    expected = sum(value**2 for row in decoder.layer.weight.tolist() for value in row)
    assert squared_weights(decoder).item() == pytest.approx(expected, rel=1e-6)
    without = loss(regulariser="none", regulariser_weight=None)(image, latent, decoder, condition)[0]
    assert (total - without).item() == pytest.approx(0.2 * expected, rel=1e-4)
    gradient = torch.autograd.grad(total, decoder.layer.weight)[0] - torch.autograd.grad(without, decoder.layer.weight)[0]
    assert torch.allclose(gradient, 0.4 * decoder.layer.weight, rtol=1e-3, atol=1e-5)


def jacobian_by_hand(decoder: Linear, latent: torch.Tensor) -> torch.Tensor:
    """Of tanh(W z + b): [N, 4, 3]."""
    output = decoder(latent, torch.empty(len(latent), 0)).flatten(1)
    return (1 - output.tanh().square())[:, :, None] * decoder.layer.weight


def test_the_gradient_penalty_is_that_of_the_reconstruction_along_one_projection():
    decoder, (image, latent, condition) = Linear(), batch()
    torch.manual_seed(4)
    total, parts = loss(regulariser="gradient_penalty")(image, latent, decoder, condition)
    torch.manual_seed(4)
    noise = torch.randn(5, 1, 2, 2).flatten(1)
    projected = torch.einsum("no,noz->nz", noise, jacobian_by_hand(decoder, latent))
    expected = projected.square().sum() / 5
    assert parts["gradient_penalty"].item() == pytest.approx(expected.item(), rel=1e-5)
    without = loss(regulariser="none", regulariser_weight=None)(image, latent, decoder, condition)[0]
    found, by_hand = (torch.autograd.grad(value, decoder.layer.weight)[0] for value in (total, without + 0.2 * expected))
    assert torch.allclose(found, by_hand, rtol=1e-4, atol=1e-6)


def test_the_estimate_of_the_squared_jacobian_is_unbiased():
    decoder, latent = Linear(), batch(1)[1]
    many = latent.detach().repeat(20_000, 1).requires_grad_()
    torch.manual_seed(5)
    found = squared_jacobian(decoder(many, torch.empty(20_000, 0)).tanh(), many).detach()
    expected = jacobian_by_hand(decoder, latent).square().sum().item()
    assert found.mean().item() == pytest.approx(expected, abs=5 * found.std().item() / 20_000**0.5)


def test_without_a_graph_the_gradient_penalty_is_zero():
    image, latent, condition = batch()
    with torch.no_grad():
        _, parts = loss(regulariser="gradient_penalty")(image, latent.detach(), Linear(), condition)
    assert parts["gradient_penalty"].item() == 0


def test_the_gradient_penalty_is_computed_in_float32_and_without_compilation():
    decoder, (image, latent, condition) = Linear(), batch()
    penalised = loss(regulariser="gradient_penalty")
    torch.manual_seed(6)
    expected, _ = penalised(image, latent, decoder, condition)
    decoder._compiled_call_impl = None  # what torch.compile puts there is not to be called
    decoder.__call__ = None
    torch.manual_seed(6)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = penalised(image, latent, decoder, condition)
    assert torch.equal(found, expected)


def test_the_likelihood_may_be_another_one():
    decoder, (image, latent, condition) = Linear(), batch()
    likelihood = Bernoulli(binarisation="none")
    _, parts = loss(likelihood=likelihood)(image, latent, decoder, condition)
    output = decoder(latent, condition)
    assert parts["reconstruction_nats"].item() == pytest.approx(
        likelihood.negative_log_likelihood(output, image).mean().item(), rel=1e-6
    )
    assert parts["squared_error"].item() == pytest.approx(
        (2 * output.sigmoid() - 1 - image).square().sum().item() / 5, rel=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_weight": -1.0}, r"^latent_weight=-1\.0 must be 0 or more"),
        ({"regulariser": "l1"}, r"^regulariser=l1 is unknown: choose one of none, l2, gradient_penalty, spectral_norm"),
        ({"regulariser_weight": None}, r"^regulariser_weight=null does not match regulariser=l2: l2 and .* need a number"),
        ({"regulariser": "none"}, r"^regulariser_weight=0\.2 does not match regulariser=none: .* the others null"),
        ({"regulariser": "spectral_norm"}, r"^regulariser_weight=0\.2 does not match regulariser=spectral_norm"),
        ({"regulariser_weight": 0.0}, r"^regulariser_weight=0\.0 must be above 0: .*regulariser=none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        loss(**changes)
