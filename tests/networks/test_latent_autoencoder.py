import pytest
import torch
from errors import raises

from genimg.networks.latent_autoencoder import Decoder, Encoder

SIZES = {
    "channels": 3, "latent_channels": 2, "width": 8, "multipliers": [1, 2], "num_blocks": 1, "patch_size": 2, "attention": True
}  # fmt: skip


@pytest.mark.parametrize(("height", "width", "patch"), [(16, 24, 2), (8, 8, 1)])
def test_latents_are_a_grid_and_images_have_their_size_back(height: int, width: int, patch: int) -> None:
    sizes = SIZES | {"patch_size": patch}
    encoder, decoder = Encoder(image_size=[height, width], **sizes), Decoder(**sizes)
    moments = encoder(torch.randn(2, 3, height, width))
    assert moments.shape == (2, 4, height // (2 * patch), width // (2 * patch))
    assert decoder(moments[:, :2]).shape == (2, 3, height, width)


def test_a_size_that_does_not_fit_is_refused_with_the_nearest() -> None:
    with raises(ValueError, word="[16,20]"):
        Encoder(image_size=[18, 20], **SIZES)
    for change in ({"multipliers": []}, {"width": 0}, {"patch_size": 0}, {"num_blocks": 0}, {"latent_channels": 0}):
        with raises(ValueError, word=next(iter(change))):
            Decoder(**(SIZES | change))
