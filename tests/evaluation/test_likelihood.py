"""The likelihood of held-out images, against sums over the method's own numbers."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import tiny
import torch
from errors import raises

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.data.split import without_validation
from genimg.data.subsets import random_subset
from genimg.errors import ConfigError, DataError
from genimg.evaluation.feature_extraction import EvaluationInterruptedError
from genimg.evaluation.likelihood import LikelihoodEvaluator
from genimg.losses.elbo import ELBO
from genimg.losses.likelihoods import Bernoulli
from genimg.methods.vae import VAE
from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.fully_connected import Decoder, Encoder
from genimg.utils.images import to_float
from genimg.utils.rng import hash_integers

CPU = torch.device("cpu")
SETTINGS = {
    "num_images": 7, "num_samples": 3, "batch_size": 4, "seed": 0,
}  # fmt: skip


def evaluator(**changes):
    return LikelihoodEvaluator(**(SETTINGS | changes))


def vae(condition=Unconditional):
    torch.manual_seed(0)
    likelihood = Bernoulli(binarisation="none")
    settings = {"image_size": 6, "channels": 1, "latent_dim": 3, "widths": [8], "activation": "tanh"}
    loss = ELBO(likelihood=likelihood, num_samples=1, kl_weight=1.0, warm_up=0, free_bits=0.0, capacity=None, capacity_growth=0)
    return VAE(
        encoder=Encoder(condition=condition(), moments=2, **settings),
        decoder=Decoder(condition=condition(), likelihood=likelihood, **settings),
        loss=loss,
        latent_dim=3,
        hierarchy=[],
    )


def data(*, validation=0.0, count=40, keys=("image",)):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 1, 6, 6), dtype=np.uint8)
    source = ArrayDataset("noise", images, np.arange(count) % 3, ("a", "b", "c"))
    source = without_validation(source, validation)
    return ImageLoader(source, storage="device", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU, keys=keys)


def test_values_are_means_over_random_held_out_images():
    method, images = vae(), data(validation=0.25)
    result = evaluator().evaluate(method, images, CPU)
    held_out = images.validation
    assert len(held_out.source) == 10
    chosen = random_subset(7, 10, seed=0, labels=held_out.source.labels)
    batch = {"image": to_float(held_out.images(chosen))}
    found = method.log_likelihood(batch, 3, hash_integers(13, 0, chosen))
    nll = -found["log_likelihood"].mean().item()
    assert result.values["nll_iw3_nats"] == pytest.approx(nll, rel=1e-6)
    assert result.values["nll_iw3_cross_entropy_bits_per_dim"] == pytest.approx(nll / (36 * math.log(2)), rel=1e-6)
    assert result.values["elbo_nats"] == pytest.approx(found["elbo"].mean().item(), rel=1e-6)
    assert result.values["cross_entropy_bits_per_dim"] == pytest.approx(
        -result.values["elbo_nats"] / (36 * math.log(2)), rel=1e-6
    )
    difference = result.values["reconstruction_nats"] + result.values["kl_nats"]
    assert result.values["elbo_nats"] == pytest.approx(-difference, rel=1e-6)
    assert nll < -result.values["elbo_nats"]
    assert next(iter(result.values)) == evaluator().primary == "nll_iw3_nats"
    assert not evaluator().higher_is_better
    told = result.provenance["likelihood"]
    assert told["held_out"]
    assert (told["num_images"], told["num_samples"], told["of"]) == (7, 3, "Bernoulli of grey values")


def test_neither_the_batch_size_nor_the_random_stream_matters():
    method, images = vae(), data(validation=0.25)
    expected = evaluator().evaluate(method, images, CPU).values
    torch.manual_seed(5)
    assert evaluator(batch_size=1).evaluate(method, images, CPU).values == pytest.approx(expected, rel=1e-6)
    assert evaluator(seed=1).evaluate(method, images, CPU).values != pytest.approx(expected, rel=1e-6)


def test_conditions_come_with_the_images():
    method = vae(lambda: OneHot(num_classes=3))
    images = data(validation=0.25, keys=("image", "label"))
    first = evaluator().evaluate(method, images, CPU).values["nll_iw3_nats"]
    images.validation._annotations["label"].fill_(0)
    assert evaluator().evaluate(method, images, CPU).values["nll_iw3_nats"] != first


def test_without_held_out_images_it_says_so_once(caplog):
    measuring = evaluator()
    with caplog.at_level(logging.WARNING):
        result = measuring.evaluate(vae(), data(), CPU)
        measuring.evaluate(vae(), data(), CPU)
    assert not result.provenance["likelihood"]["held_out"]
    assert len([record for record in caplog.records if "no held-out images" in record.message]) == 1


def test_it_stops_when_asked():
    with pytest.raises(EvaluationInterruptedError):
        evaluator().evaluate(vae(), data(), CPU, should_stop=lambda: True)


def test_a_model_without_a_likelihood_is_refused():
    with raises(ConfigError, word="likelihood"):
        evaluator().check(tiny.gan())


def test_a_model_that_has_diverged_is_no_result():
    method = vae()
    with torch.no_grad():
        next(method.decoder.parameters()).fill_(math.nan)
    with raises(DataError, word="noise"):
        evaluator().evaluate(method, data(), CPU)


@pytest.mark.parametrize("key", ["num_images", "num_samples", "batch_size"])
def test_numbers_below_one_are_refused(key):
    with raises(ValueError, f"{key}=0"):
        evaluator(**{key: 0})
