import ast
import inspect
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from genimg.data.sampler import InfiniteSampler, epoch_order
from genimg.data.tasks import ranges
from genimg.utils import rng
from genimg.utils.rng import (
    Stream,
    content_uniform,
    hash_integers,
    keys_of,
    normal_field,
    normal_latents,
    seed_of,
    steady,
    subkeys,
    uniform,
    uniform_field,
)

MASK = 2**64 - 1
CPU = torch.device("cpu")


def splitmix64(state: int) -> int:
    """The published algorithm in plain integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_hash_of_zero_is_the_first_output_of_splitmix64_seeded_with_zero():
    assert int(hash_integers(0)[0]) == 0xE220A8397B1DCDAF  # the published test vector


@pytest.mark.parametrize("keys", [(0,), (1, 2, 3), (-1,), (2**63 - 1, -(2**63)), (7, 0, 0, 7)])
def test_hash_equals_splitmix64_chained_over_the_keys_in_plain_integers(keys):
    state = 0
    for key in keys:
        state = splitmix64(state ^ (key & MASK))
    assert int(hash_integers(*keys)[0]) == state


def test_array_arguments_broadcast_to_the_same_hashes_as_one_at_a_time():
    together = hash_integers(5, np.arange(-3, 20), 9)
    assert together.tolist() == [int(hash_integers(5, i, 9)[0]) for i in range(-3, 20)]


def test_hash_depends_on_every_key_and_on_their_order():
    tuples = list(itertools.product(range(8), repeat=3))
    assert len({int(hash_integers(*keys)[0]) for keys in tuples}) == len(tuples)


def test_uniform_numbers_follow_the_uniform_distribution():
    values = uniform(3, Stream.MASK, np.arange(20_000), 1)
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert stats.kstest(values, "uniform").pvalue > 1e-3  # deterministic: no seed is drawn here


@pytest.mark.parametrize(
    "other", [(4, Stream.MASK, 1), (3, Stream.MASK, 2), (3, Stream.DEGRADATION, 1), (3, Stream.LATENT, 1), (3, Stream.STEP, 1)]
)
def test_neighbouring_keys_give_uncorrelated_streams(other):
    indices, (seed, stream, number) = np.arange(20_000), other
    correlation = np.corrcoef(uniform(3, Stream.MASK, 1, indices), uniform(seed, stream, number, indices))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(len(indices))


@pytest.mark.parametrize("seed", [0, -5, 2**62])
@pytest.mark.parametrize("position", [(), (3,), (0, -1)])
def test_seed_is_accepted_by_torch_and_repeats(seed, position):
    found = seed_of(seed, Stream.STEP, *position)
    assert 0 <= found < 2**63
    assert found == seed_of(seed, Stream.STEP, *position)
    torch.Generator().manual_seed(found)


def test_a_latent_depends_on_the_seed_and_its_index_alone():
    rows = normal_latents(7, range(10), 5)
    assert rows.shape == (10, 5)
    assert rows.dtype == torch.float32
    assert torch.equal(normal_latents(7, [9, 2, 2], 5), rows[[9, 2, 2]])
    assert not torch.equal(normal_latents(8, range(10), 5), rows)


def test_latents_leave_the_global_generator_alone_and_do_not_read_it():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = normal_latents(0, [0, 1], 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(normal_latents(0, [0, 1], 4), first)


def test_latents_are_standard_normal():
    values = normal_latents(0, range(500), 40).flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3


# Streams

HASHED = {
    Stream.PREVIEW: (1, 5, 40), Stream.LATENT: (2, 5, 40), Stream.CONDITION: (3, 5, 40), Stream.DOMAIN: (5, 5, 40),
    Stream.TRANSLATION: (7, 5, 40), Stream.BLOCK: (8, 5, 40), Stream.CONTENT: (9, 5, 40), Stream.CODE: (10, 5, 40),
    Stream.COMPONENT: (11, 5, 40), Stream.KMEANS_START: (12, 5, 40), Stream.LIKELIHOOD: (13, 5, 40), Stream.SUBSET: (14, 5, 40),
    Stream.SUBSET_TIE: (15, 5, 40), Stream.PIXEL_NOISE: (21, 5, 40), Stream.BOOTSTRAP: (22, 5, 40),
    Stream.DENOISING: (23, 5, 40), Stream.DENOISING_ERROR: (24, 5, 40),
    Stream.TRANSLATION_NOISE: (31, 5, 40), Stream.PROJECTION: (32, 5, 40), Stream.PATH_POSITION: (33, 5, 40),
    Stream.SAMPLE_AUGMENT: (5, 2, 40), Stream.DEGRADATION: (5, 6, 40), Stream.MASK: (5, 7, 40),
    Stream.STEP: (5, 40), Stream.EPOCH_ORDER: (5, 40), Stream.FLIP: (5, 40), Stream.DRAWN_SHAPES: (5, 40),
    Stream.WORD_HASH: (5, 40),
}  # fmt: skip
"""The integers that are hashed for seed 5 and position 40; results depend on them, so they are never changed."""
GENIMG = Path(rng.__file__).parents[1]
TREES = {
    path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(GENIMG.rglob("*.py")) if path != Path(rng.__file__)
}
TAKING_STREAMS = {
    name: list(inspect.signature(function).parameters).index("stream")
    for module in (rng, ranges)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if "stream" in inspect.signature(function).parameters
}


def test_numbers_of_streams_are_unique():
    assert [name for name, stream in Stream.__members__.items() if stream.name != name] == []  # Enum makes equal ones aliases


def test_every_stream_hashes_the_integers_that_it_always_did():
    assert HASHED.keys() == set(Stream)
    for stream, integers in HASHED.items():
        assert keys_of(5, stream, 40).tolist() == hash_integers(*integers).tolist(), stream.name


def test_a_stream_without_a_seed_hashes_its_number_and_the_position():
    assert keys_of(None, Stream.CONTENT, 40).tolist() == hash_integers(9, 40).tolist()
    with pytest.raises(AssertionError):
        keys_of(None, Stream.MASK, 40)


def test_numbers_are_those_of_before():
    assert keys_of(0, Stream.SUBSET, 3).tolist() == [12752195671942380524]
    assert seed_of(3, Stream.STEP, 5) == 7435603815101345319
    assert uniform(3, Stream.SAMPLE_AUGMENT, 0, 5).tolist() == [0.7565790616249131]
    assert normal_latents(7, [3], 3)[0].tolist() == pytest.approx(
        [-0.2690151035785675, 0.3598043918609619, -0.6645854115486145], rel=1e-6
    )
    assert content_uniform(torch.zeros(1, 1, 1, 2)).flatten().tolist() == [0.8998295068740845, 0.18886041641235352]
    with steady(3, 5):
        assert torch.rand(2).tolist() == [0.789417564868927, 0.388477087020874]
    assert epoch_order(3, 2, 8).tolist() == [4, 0, 2, 3, 5, 7, 6, 1]
    assert InfiniteSampler(50, seed=3, horizontal_flip=True).flips(10, 18).astype(int).tolist() == [1, 0, 0, 0, 0, 1, 1, 1]


def test_keys_of_keys_are_hashes_of_every_pair():
    found = subkeys(keys(3), np.arange(4)).reshape(3, 4)
    assert found[2, 1] == hash_integers(int(keys(3)[2].astype(np.int64)), 1)[0]
    assert len(np.unique(found)) == 12


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(GENIMG)))
def test_no_module_has_a_stream_number_of_its_own(path):
    """A call names a member of ``Stream``, or passes on its own argument ``stream``; only rng.py hashes bare integers."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.module == "genimg.utils.rng":
            assert "hash_integers" not in {alias.name for alias in node.names}
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            assert not [t.id for t in targets if isinstance(t, ast.Name) and "STREAM" in t.id]
        if isinstance(node, ast.Call):
            of_partial = isinstance(node.func, ast.Name) and node.func.id == "partial"
            function, *arguments = node.args if of_partial else [node.func, *node.args]
            if isinstance(function, ast.Name) and function.id in TAKING_STREAMS:
                stream = ast.unparse(arguments[TAKING_STREAMS[function.id]])
                assert stream == "stream" or stream.removeprefix("Stream.") in Stream.__members__, ast.unparse(node)


def test_every_stream_is_used():
    used = {
        node.attr
        for tree in (*TREES.values(), ast.parse(inspect.getsource(rng)))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Stream"
    }
    assert used == set(Stream.__members__)


# Fields, made on the device


def keys(count, start=0):
    return hash_integers(3, np.arange(start, start + count))


def test_a_uniform_field_is_made_of_two_runs_of_24_bits_of_splitmix64_in_plain_integers():
    seeds = np.array([0, 1, MASK, 2**63], dtype=np.uint64)
    bits = [[splitmix64((seed + i * 0x9E3779B97F4A7C15) & MASK) for i in range(8)] for seed in seeds.tolist()]
    assert bits[0][0] == 0xE220A8397B1DCDAF  # the published test vector
    expected = [[*(each >> 40 for each in row), *(each >> 16 & 0xFFFFFF for each in row)] for row in bits]
    assert (uniform_field(seeds, (15,), CPU).numpy() == np.array(expected)[:, :15] / 2**24).all()


@pytest.mark.parametrize(("field", "distribution"), [(uniform_field, "uniform"), (normal_field, "norm")])
def test_fields_follow_their_distributions(field, distribution):
    values = field(keys(20), (3, 32, 33), CPU)
    assert values.shape == (20, 3, 32, 33)
    assert values.dtype == torch.float32
    flat = values.double().flatten().numpy()
    assert stats.kstest(flat, distribution).pvalue > 1e-3
    expected, count = stats.uniform if distribution == "uniform" else stats.norm, len(flat)
    for moment in range(1, 5):
        error = math.sqrt((expected.moment(2 * moment) - expected.moment(moment) ** 2) / count)
        assert abs((flat**moment).mean() - expected.moment(moment)) < 5 * error


def test_uniform_fields_lie_in_the_half_open_interval():
    values = uniform_field(keys(64), (64, 64), CPU)
    assert 0 <= values.min() < 1e-4
    assert 1 - 1e-4 < values.max() < 1


@pytest.mark.parametrize("field", [uniform_field, normal_field])
def test_neighbours_in_a_field_and_fields_of_neighbouring_positions_are_independent(field):
    values = field(keys(50), (40, 50), CPU).double()
    values = (values - values.mean()) / values.std()
    half = values.flatten(1)[:, :1000] * values.flatten(1)[:, 1000:]  # made of the same bits
    pairs = (values[1:] * values[:-1], values[:, 1:] * values[:, :-1], values[:, :, 1:] * values[:, :, :-1], half)
    for products in pairs:
        assert abs(products.mean()) < 5 / math.sqrt(products.numel())
        squares = products.square().mean() / values.pow(2).mean() ** 2  # 1 where the squares are independent, too
        assert abs(squares - 1) < 5 * stats.norm.moment(4) / math.sqrt(products.numel())


@pytest.mark.parametrize("field", [uniform_field, normal_field])
@pytest.mark.parametrize("shape", [(3, 7, 5), (4,), (1,), (1, 32, 32)])
def test_a_row_of_a_field_depends_on_its_key_alone(field, shape):
    whole = field(keys(12), shape, CPU)
    for size in (1, 5):
        pieces = [field(keys(min(size, 12 - i), i), shape, CPU) for i in range(0, 12, size)]
        assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("field", [uniform_field, normal_field])
def test_fields_neither_use_nor_move_torchs_random_numbers(field):
    state = torch.get_rng_state()
    field(keys(2), (3, 4), CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_steady_randomness_is_a_function_of_seed_and_position_and_uses_none_up():
    def draw(seed, position):
        with steady(seed, position):
            return torch.rand(3).tolist()

    state = torch.get_rng_state()
    assert draw(0, 1) == draw(0, 1)
    assert len({tuple(draw(seed, position)) for seed in range(3) for position in range(3)}) == 9
    assert torch.equal(torch.get_rng_state(), state)


# Of images alone


def pictures(count=40, *, shape=(3, 16, 17), seed=0):
    levels = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed))
    return levels / 127.5 - 1


def test_numbers_of_images_are_uniform_and_independent_of_their_neighbours_and_of_the_pixels():
    images = pictures(60)
    values = content_uniform(images)
    assert values.shape == images.shape
    assert values.dtype == torch.float32
    assert values.min() >= 0
    assert values.max() < 1
    flat = values.double().flatten().numpy()
    assert stats.kstest(flat, "uniform").pvalue > 1e-3  # deterministic: no seed is drawn here
    centred = values.double() - 0.5
    pairs = (centred[1:] * centred[:-1], centred[..., 1:] * centred[..., :-1], centred[:, 1:] * centred[:, :-1])
    for products in (*pairs, centred * images.double()):
        assert abs(products.mean()) < 5 * products.std() / math.sqrt(products.numel())


def test_numbers_of_images_that_are_nearly_alike_are_uniform_too():
    images = torch.full((3 * 256, 1, 4, 4), 1 / 255)  # level 128
    for position in range(3):
        images[256 * position : 256 * (position + 1), 0, position, 0] = torch.arange(256) / 127.5 - 1
    values = content_uniform(images).double()
    kept = torch.cat([values[:256], values[256:512][torch.arange(256) != 128], values[512:][torch.arange(256) != 128]])
    assert len(kept.flatten(1).unique(dim=0)) == len(kept)
    assert stats.kstest(kept.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(kept[:, 0, 0, 0].numpy(), "uniform").pvalue > 1e-3


def test_numbers_of_an_image_depend_on_its_levels_alone():
    images = pictures(12)
    whole = content_uniform(images)
    for size in (1, 5):
        assert torch.equal(torch.cat([content_uniform(piece) for piece in images.split(size)]), whole)
    assert torch.equal(content_uniform(images.flip(0)).flip(0), whole)
    assert torch.equal(content_uniform(images[[3, 3]]), whole[[3, 3]])
    assert torch.equal(content_uniform(images.to(memory_format=torch.channels_last)), whole)
    assert torch.equal(content_uniform(images.double()), whole)
    assert torch.equal(content_uniform((images + 0.4 / 127.5).clamp(-1, 1)), whole)  # of the same level


def test_a_changed_pixel_changes_all_numbers():
    image = pictures(1)
    whole = content_uniform(image)
    for place in ((0, 0, 0, 0), (0, 2, 15, 16), (0, 1, 7, 3)):
        changed = image.clone()
        changed[place] += 2 / 255 if changed[place] < 0 else -2 / 255
        assert (content_uniform(changed) == whole).sum().item() <= 1  # of 816 numbers of 24 bits


def test_images_whose_pixels_are_moved_have_other_numbers():
    image = pictures(1)
    assert not torch.equal(content_uniform(image.flip(-1)), content_uniform(image))
    assert (content_uniform(image.flip(-1)).flip(-1) == content_uniform(image)).sum().item() <= 1


def test_numbers_of_images_neither_use_nor_move_torchs_random_numbers_and_have_no_gradient():
    state = torch.get_rng_state()
    values = content_uniform(pictures(2).requires_grad_())
    assert torch.equal(torch.get_rng_state(), state)
    assert not values.requires_grad
