"""Files of latents: what is written is read again, and anything else is refused."""

import logging
import os

import pytest
import tiny
import torch
from errors import raises

from genimg.errors import DataError
from genimg.inference.latent_files import load_codes, save_codes
from genimg.methods.generator_latents import GeneratorLatents


@pytest.fixture
def latents():
    return GeneratorLatents(tiny.style_gan(num_classes=3))


def drawn(latents, space="w", count=3):
    codes = latents.codes(latents.draw(range(count), 0), space)
    maps = tuple(torch.randn(count, 1, *size) for size in latents.noise_sizes)
    return type(codes)(codes.space, codes.values, codes.condition, maps)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_a_file_or_its_folder_is_read_as_it_was_written(tmp_path, latents, caplog, space):
    codes = drawn(latents, space)
    save_codes(tmp_path / "latents.pt", codes, ["a", "b", "c"], "digest")
    for given in (tmp_path, tmp_path / "latents.pt"):
        found = load_codes("latents", given, latents, "digest")
        assert found.space == space
        assert torch.equal(found.values, codes.values)
        assert torch.equal(found.condition["label"], codes.condition["label"])
        assert all(map(torch.equal, found.noise_maps, codes.noise_maps))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        load_codes("latents", tmp_path, latents, "other")
    assert len(caplog.records) == 1


CHANGES = {
    "another kind": {"kind": "directions"},
    "a later format": {"format": 2},
    "a space of other models": {"space": "z"},
    "a space that does not exist": {"space": ["w"]},
    "no latents": {"values": torch.zeros(0, 5)},
    "another width": {"values": torch.zeros(3, 4)},
    "values that are not finite": {"values": torch.full((3, 5), float("nan"))},
    "other numbers": {"values": torch.zeros(3, 5, dtype=torch.float64)},
    "something else": {"values": None},
    "no condition": {"condition": {}},
    "a class that does not exist": {"condition": {"label": torch.tensor([0, 1, 3])}},
    "too few classes": {"condition": {"label": torch.tensor([0, 1])}},
    "other conditions": {"condition": {"caption": torch.zeros(3, 2, dtype=torch.uint8)}},
    "too few maps": {"noise_maps": [torch.zeros(3, 1, 4, 4)]},
    "maps that are no list": {"noise_maps": 1},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_the_model_is_refused(tmp_path, latents, name):
    save_codes(tmp_path / "latents.pt", drawn(latents), ["a", "b", "c"], "digest")
    content = torch.load(tmp_path / "latents.pt", weights_only=True)
    torch.save(content | CHANGES[name], tmp_path / "latents.pt")
    with raises(DataError, "latents"):
        load_codes("latents", tmp_path, latents, "digest")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_file_that_is_missing_damaged_or_holds_code_is_refused(tmp_path, latents, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(DataError, "latents"):
        load_codes("latents", tmp_path / "none.pt", latents, "digest")
    path = tmp_path / "latents.pt"
    for content in (Hostile(), [1, 2], {"kind": Hostile()}):
        torch.save(content, path)
        with raises(DataError, "latents"):
            load_codes("latents", path, latents, "digest")
    save_codes(path, drawn(latents), ["a", "b", "c"], "digest")
    path.write_bytes(path.read_bytes()[:-100])
    with raises(DataError, "latents"):
        load_codes("latents", path, latents, "digest")
    assert not (tmp_path / "ran").exists()
