"""Training of small classifiers: that it learns, repeats, and states the accuracy of what it returns."""

import numpy as np
import pytest
import torch

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.evaluation.extractors.classifier import Classifier
from genimg.training.classifier import LabelledImages, train_classifier
from genimg.training.device import Precision
from genimg.training.update import NonFiniteError

CPU = torch.device("cpu")
NAMES = ("dark", "bright")
NUM_TRAIN, NUM_TEST = 96, 700  # more than the 500 images that are measured at once


def make_source(*, channels=1, wrong=()):
    """Noise below or above the middle grey, labelled by which; the labels of ``wrong`` are exchanged."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, NUM_TRAIN + NUM_TEST)
    images = random.integers(0, 100, (len(labels), channels, 8, 8)) + 150 * labels[:, None, None, None]
    labels[list(wrong)] = 1 - labels[list(wrong)]
    return ArrayDataset("two greys", images.astype(np.uint8), labels, NAMES)


def train(source, *, seed=0, learning_rate=3e-3, order=None):
    data = ImageLoader(source, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU)
    indices = np.arange(len(source)) if order is None else order
    return train_classifier(
        LabelledImages(data, indices[:NUM_TRAIN]),
        LabelledImages(data, indices[NUM_TRAIN:]),
        epochs=4,
        batch_size=20,
        learning_rate=learning_rate,
        weight_decay=0.01,
        seed=seed,
        precision=Precision("fp32", CPU),
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Images of 8x8 pixels are not worth several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def record():
    return train(make_source())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_classifier_learns_what_is_easily_told_apart(record, channels):
    trained = record if channels == 1 else train(make_source(channels=3))
    assert trained["test_accuracy"] == 1.0
    assert trained["channels"] == channels
    assert trained["image_size"] == 8
    assert trained["class_names"] == list(NAMES)


def test_the_record_says_what_it_was_trained_on(record):
    assert record["num_train"] == NUM_TRAIN
    assert record["num_test"] == NUM_TEST
    assert record["epochs"] == 4
    assert record["seed"] == 0
    assert record["trained_on"] == "two greys"
    assert record["fingerprint"] == make_source().fingerprint


def test_training_is_a_function_of_the_seed(record):
    again, other = train(make_source()), train(make_source(), seed=1)
    assert again["state_dict"].keys() == record["state_dict"].keys()
    assert all(torch.equal(again["state_dict"][key], value) for key, value in record["state_dict"].items())
    assert not torch.equal(other["state_dict"]["head.weight"], record["state_dict"]["head.weight"])


def test_the_order_of_the_images_is_a_function_of_the_seed_too(record, monkeypatch):
    start = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: start(0))  # the same weights to begin with
    assert not torch.equal(train(make_source(), seed=1)["state_dict"]["head.weight"], record["state_dict"]["head.weight"])


def test_training_does_not_see_the_held_out_images(record):
    held_out = range(NUM_TRAIN, NUM_TRAIN + NUM_TEST)
    misled = train(make_source(wrong=held_out))
    assert misled["test_accuracy"] == 0.0
    assert all(torch.equal(misled["state_dict"][key], value) for key, value in record["state_dict"].items())


def test_the_accuracy_counts_the_held_out_images_with_their_own_labels():
    wrong = [NUM_TRAIN, NUM_TRAIN + 499, NUM_TRAIN + 500, NUM_TRAIN + NUM_TEST - 1]  # in both of the passes of 500
    assert train(make_source(wrong=wrong))["test_accuracy"] == pytest.approx(1.0 - len(wrong) / NUM_TEST, abs=1e-12)
    order = np.random.default_rng(1).permutation(NUM_TRAIN + NUM_TEST)
    assert train(make_source(), order=order)["test_accuracy"] == 1.0


def test_the_record_is_a_classifiers_file_with_the_accuracy_that_it_states(tmp_path):
    source = make_source(wrong=range(NUM_TRAIN, NUM_TRAIN + 33))
    # After a training at a low rate some images are still mistaken, so that the accuracy is no round number.
    record = train(source, learning_rate=3e-4)
    torch.save(record, tmp_path / "greys.pt")
    extractor = Classifier(classifier=str(tmp_path / "greys.pt"), sha256=None)
    _, logits = extractor(torch.from_numpy(source.images[NUM_TRAIN:]))
    right = logits.argmax(dim=1).numpy() == source.labels[NUM_TRAIN:]
    assert record["test_accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    assert 0.0 < record["test_accuracy"] < 1.0
    assert extractor.class_names == NAMES
    assert extractor.image_size == 8


def test_weights_are_kept_in_half_precision(record):
    kinds = {key: value.dtype for key, value in record["state_dict"].items()}
    assert {kind for key, kind in kinds.items() if not key.endswith("num_batches_tracked")} == {torch.float16}
    assert {kind for key, kind in kinds.items() if key.endswith("num_batches_tracked")} == {torch.int64}


def test_a_training_that_diverges_is_not_taken_for_a_classifier():
    with pytest.raises(NonFiniteError):
        train(make_source(), learning_rate=1e30)
