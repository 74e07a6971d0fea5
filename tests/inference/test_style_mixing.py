import pytest
import tiny
import torch
from errors import raises

from genimg.errors import ConfigError
from genimg.inference.style_mixing import check_layers, mixed
from genimg.methods.generator_latents import GeneratorLatents, LatentCodes


def codes(space, values, labels):
    maps = (torch.arange(len(labels)).view(-1, 1, 1, 1).float(),)
    return LatentCodes(space, values, {"label": torch.tensor(labels)}, maps)


def test_the_columns_styles_apply_in_the_chosen_layers_and_the_rest_is_the_rows():
    rows, columns = torch.randn(2, 4, 3), torch.randn(3, 3)
    found = mixed(codes("w+", rows, [7, 8]), codes("w", columns, [1, 2, 3]), [0, 2], 4)
    assert found.space == "w+"
    assert found.values.shape == (6, 4, 3)
    for i in range(2):
        for j in range(3):
            own = found.values[3 * i + j]
            assert torch.equal(own[[1, 3]], rows[i][[1, 3]])
            assert torch.equal(own[[0, 2]], columns[j].expand(2, -1))
    assert found.condition["label"].tolist() == [7, 7, 7, 8, 8, 8]
    assert found.noise_maps[0].flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_all_layers_of_the_columns_give_their_images():
    latents = GeneratorLatents(tiny.style_gan())
    own = latents.codes(latents.draw(range(5), 0), "w")
    found = latents.images(mixed(own[slice(0, 2)], own[slice(2, 5)], range(6), 6))
    torch.testing.assert_close(found.unflatten(0, (2, 3))[1], latents.images(own[slice(2, 5)]))


@pytest.mark.parametrize("layers", [[], [0, 0], [6], [-1]])
def test_layers_must_exist_and_differ(layers):
    latents = GeneratorLatents(tiny.style_gan())
    with raises(ConfigError, "mix", word="5"):
        check_layers("mix", layers, latents)
    check_layers("mix", [5, 0], latents)
    with raises(ConfigError, "layers", word="styles"):
        check_layers("layers", [0], GeneratorLatents(tiny.gan().eval()))
