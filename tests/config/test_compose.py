"""A config is composed once; nobody writes into it."""

import pickle

import pytest
from errors import raises
from omegaconf.errors import ReadonlyConfigError

from genimg.config.compose import Config, compose, thaw

RAW = {"trainer": {"batch_size": 4, "sizes": [1, 2]}, "model": {"batch": "${trainer.batch_size}"}}


def writes(config):
    yield lambda: config.__setitem__("model", {})
    yield lambda: config["trainer"].__setitem__("batch_size", 8)
    yield lambda: config["trainer"].update(batch_size=8)
    yield lambda: config["trainer"].pop("batch_size")
    yield lambda: config["trainer"]["sizes"].append(3)
    yield lambda: config["trainer"]["sizes"].__setitem__(0, 3)
    yield lambda: config["model"].setdefault("other", 1)


@pytest.mark.parametrize("view", ["resolved", "raw"])
def test_nobody_writes_into_a_config_at_any_depth(view):
    config = Config(RAW)
    shown = config if view == "resolved" else config.raw
    for write in writes(shown):
        with raises(TypeError, word="immutable"):
            write()
    assert config == {"trainer": {"batch_size": 4, "sizes": [1, 2]}, "model": {"batch": 4}}
    assert config.raw == RAW


def test_a_config_holds_both_forms_and_survives_a_copy_to_another_process():
    config = Config(RAW)
    copied = pickle.loads(pickle.dumps(config))
    assert (copied, copied.raw) == (config, config.raw)
    with pytest.raises(TypeError):
        copied["trainer"]["batch_size"] = 8
    record = config.record()
    assert record == {"config": thaw(config), "raw_config": RAW}
    assert type(record["config"]["trainer"]) is dict
    assert type(record["config"]["trainer"]["sizes"]) is list


def test_another_group_makes_another_config():
    config = Config(RAW)
    other = config.replaced(trainer={"batch_size": 16})
    assert (other["model"]["batch"], config["model"]["batch"]) == (16, 4)


def test_what_was_composed_is_read_only():
    composition = compose(["model=vae_small"])
    with pytest.raises(ReadonlyConfigError):
        composition.config.seed = 3
    assert composition.choices["model"] == "vae_small"
    assert composition.typed_keys() == {"model"}
