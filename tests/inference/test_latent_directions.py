"""Directions in latents, against numpy's decompositions."""

import numpy as np
import pytest
import tiny
import torch
from errors import raises

from genimg.errors import ConfigError
from genimg.inference import directions as module
from genimg.inference.directions import (
    Directions,
    eigenvectors,
    find_directions,
    moved,
    principal_components,
    style_weights,
    transferred_components,
)
from genimg.methods.generator_latents import GeneratorLatents


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 300)


def assert_same_lines(found, expected):
    """Rows that are equal up to their sign."""
    np.testing.assert_allclose(np.abs((np.asarray(found) * expected).sum(axis=1)), 1.0, atol=1e-5)


def eigen(matrix):
    """Eigenvalues and eigenvectors (rows) of a symmetric matrix, the largest first."""
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1], vectors.T[::-1]


def test_components_of_w_are_the_eigenvectors_of_its_covariance():
    latents = GeneratorLatents(tiny.style_gan())
    samples = latents.style_samples(300, 4, {}).numpy().astype(np.float64)
    values, vectors = eigen(np.cov(samples.T))
    found = find_directions("ganspace", latents, 5, seed=4, row={}, layers=None)
    assert found.space == "w"
    assert_same_lines(found.vectors, vectors)
    np.testing.assert_allclose(found.deviations, np.sqrt(values), rtol=1e-3)
    np.testing.assert_allclose(found.importance, values / values.sum(), rtol=1e-4)
    with raises(ConfigError, "num_directions=6", word="5"):
        find_directions("ganspace", latents, 6, seed=4, row={}, layers=None)


def test_principal_components_have_a_fixed_sign():
    samples = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([4.0, 1, 2, 3])
    components, shares = principal_components(samples)
    assert (components.gather(1, components.abs().argmax(dim=1, keepdim=True)) > 0).all()
    torch.testing.assert_close(principal_components(-samples)[0], components)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_components_of_outputs_are_transferred_by_least_squares():
    numbers = np.random.default_rng(0)
    z, outputs = numbers.standard_normal((200, 3)), numbers.standard_normal((200, 8))
    outputs[:, :3] += 5 * z
    found, shares = transferred_components(torch.from_numpy(z), torch.from_numpy(outputs))
    values, vectors = eigen(np.cov(outputs.T))
    coordinates = (outputs - outputs.mean(axis=0)) @ vectors[:3].T
    solution = np.linalg.lstsq(coordinates, z - z.mean(axis=0), rcond=None)[0]
    assert_same_lines(found, solution / np.linalg.norm(solution, axis=1, keepdims=True))
    np.testing.assert_allclose(shares, (values / values.sum())[:3])


def test_sefa_of_styles_by_an_eigen_decomposition():
    gan = tiny.style_gan()
    latents, blocks = GeneratorLatents(gan), gan.generator.blocks

    def rows(*convolutions):
        weights = np.concatenate([each.affine.weight.detach().double().numpy() for each in convolutions])
        return weights / np.linalg.norm(weights, axis=1, keepdims=True)

    # Three resolutions, 4, 8 and 16: an image layer uses the style of the next block's first layer.
    by_layer = [
        [blocks[0].layers[0].convolution], [blocks[0].to_image, blocks[1].layers[0].convolution],
        [blocks[1].layers[1].convolution], [blocks[1].to_image, blocks[2].layers[0].convolution],
        [blocks[2].layers[1].convolution], [blocks[2].to_image],
    ]  # fmt: skip
    for layers in (None, [0, 1], [5, 2]):
        chosen = range(6) if layers is None else layers
        expected = rows(*(each for layer in sorted(chosen) for each in by_layer[layer]))
        np.testing.assert_allclose(style_weights(latents, layers), expected, rtol=1e-5, atol=1e-6)
        values, vectors = eigen(expected.T @ expected)
        found = find_directions("sefa", latents, 3, seed=0, row={}, layers=layers)
        assert_same_lines(found.vectors, vectors[:3])
        np.testing.assert_allclose(found.importance, (values / values.sum())[:3], rtol=1e-4)
    samples = latents.style_samples(300, 0, {})
    torch.testing.assert_close(found.deviations, (samples @ found.vectors.T).std(dim=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_sefa_of_z_uses_the_weights_of_the_first_layer(num_classes):
    gan = (tiny.conditional_gan("projection", 3) if num_classes else tiny.gan()).eval()
    weight = next(gan.generator.layers.parameters()).detach()  # a transposed convolution of one pixel: [Z, C, 4, 4]
    matrix = weight.flatten(1).double().numpy().T
    values, vectors = eigen(matrix.T @ matrix)
    found = find_directions("sefa", GeneratorLatents(gan), 5, seed=0, row={}, layers=None)
    assert found.space == "z"
    assert_same_lines(found.vectors, vectors)
    np.testing.assert_allclose(found.importance, values / values.sum(), rtol=1e-4)


def test_components_of_z_come_from_the_first_layers_outputs():
    gan = tiny.gan().eval()
    latents = GeneratorLatents(gan)
    z = latents.draw(range(300), 0)["latent"].double().numpy()
    outputs = z @ next(gan.generator.layers.parameters()).detach().flatten(1).double().numpy()
    expected, shares = transferred_components(torch.from_numpy(z), torch.from_numpy(outputs))
    found = find_directions("ganspace", latents, 5, seed=0, row={}, layers=None)
    assert_same_lines(found.vectors, expected.numpy())
    np.testing.assert_allclose(found.importance, shares, rtol=1e-4)


def test_eigenvalues_of_zero_have_no_direction():
    vectors, shares = eigenvectors(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
    torch.testing.assert_close(vectors, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(shares, torch.tensor([16 / 25, 9 / 25], dtype=torch.float64))


def test_a_step_is_a_deviation_along_the_direction_in_the_chosen_layers():
    directions = Directions("sefa", "w", torch.eye(2), torch.tensor([2.0, 3.0]), torch.ones(2), {})
    steps = torch.tensor([-1.0, 0.0, 2.0])
    values = torch.zeros(1, 4, 2)
    found = moved(values, "w+", directions, 1, steps, [0, 2])
    assert found.shape == (1, 3, 4, 2)
    assert found[0, :, 0].tolist() == found[0, :, 2].tolist() == [[0.0, -3.0], [0.0, 0.0], [0.0, 6.0]]
    assert found[:, :, [1, 3]].eq(0).all()
    assert moved(values[:, 0], "z", directions, 0, steps, None)[0].tolist() == [[-2.0, 0.0], [0.0, 0.0], [4.0, 0.0]]
