"""Which differences between two measurements forbid comparing them."""

import copy

import pytest

from genimg.evaluation.comparability import ProvenanceDifference, describe_differences, differences, flatten

PROVENANCE = {
    "extractor": {
        "name": "shapes",
        "weights_sha256": "abc",
        "resize": "bilinear to 32x32",
        "channels": "grey replicated to 3",
        "num_features": 128,
    },
    "generated": {
        "source": "model",
        "image_shape": "3x32x32",
        "weights": "ema",
        "mode": "eval",
        "seed": 0,
        "augmentation": "none",
        "num_images": 5000,
    },
    "real": {
        "source": "shapes",
        "fingerprint": "f00",
        "image_shape": "3x32x32",
        "augmentation": "none",
        "num_images": 10000,
        "num_kept": 10000,
    },
    "metrics": {"frechet_distance": {}, "kernel_distance": {"subsets": 100, "subset_size": 1000}},
    "bootstrap": 0,
    "precision": "features float32 without TF32, statistics float64",
    "device": "cpu",
    "versions": {"torch": "2.11.0", "pillow": "11.0"},
}

FORBIDS = {
    "extractor.name": "different feature spaces",
    "extractor.weights_sha256": "different feature spaces",
    "extractor.resize": "different feature spaces",
    "extractor.channels": "different feature spaces",
    "extractor.num_features": "different feature spaces",
    "generated.num_images": "falls as the count grows",
    "generated.image_shape": "resolution",
    "generated.augmentation": "augmented images",
    "generated.mode": "batch statistics and dropout",
    "real.source": "other images",
    "real.fingerprint": "other images",
    "real.image_shape": "the real images or their number differ",
    "real.augmentation": "the real images or their number differ",
    "real.num_images": "the real images or their number differ",
    "real.num_kept": "the real images or their number differ",
    "metrics.kernel_distance.subsets": "computed in another way",
    "metrics.kernel_distance.subset_size": "computed in another way",
}
ALLOWS = {
    "generated.source": "the images differ, as expected",
    "generated.weights": "the images differ, as expected",
    "generated.seed": "the images differ, as expected",
    "precision": "last digits",
    "device": "last digits",
    "versions.torch": "last digits",
    "versions.pillow": "decoding and resizing can change",
}


def changed(key, value):
    """The provenance with one value replaced."""
    copied = copy.deepcopy(PROVENANCE)
    *path, last = key.split(".")
    node = copied
    for part in path:
        node = node[part]
    assert node[last] != value
    node[last] = value
    return copied


def without(key):
    copied = copy.deepcopy(PROVENANCE)
    *path, last = key.split(".")
    node = copied
    for part in path:
        node = node[part]
    del node[last]
    return copied


def test_every_key_of_a_provenance_is_in_one_of_the_tables():
    known = set(flatten(PROVENANCE)) - {"bootstrap", "metrics.frechet_distance"}
    assert known == set(FORBIDS) | set(ALLOWS)


def test_equal_provenances_do_not_differ():
    assert differences(PROVENANCE, copy.deepcopy(PROVENANCE)) == []


@pytest.mark.parametrize(("key", "reason"), FORBIDS.items(), ids=FORBIDS)
def test_what_forbids_comparing(key, reason):
    (found,) = differences(PROVENANCE, changed(key, "other"))
    assert found.matters
    assert found.key == key
    assert found.second == "other"
    assert found.first == flatten(PROVENANCE)[key]
    assert reason in found.reason


@pytest.mark.parametrize(("key", "reason"), ALLOWS.items(), ids=ALLOWS)
def test_what_does_not_forbid_comparing(key, reason):
    (found,) = differences(changed(key, "other"), PROVENANCE)
    assert not found.matters
    assert found.key == key
    assert found.first == "other"
    assert found.second == flatten(PROVENANCE)[key]
    assert reason in found.reason


def test_the_number_of_resamples_is_no_difference():
    assert differences(PROVENANCE, changed("bootstrap", 200)) == []


def test_a_metric_that_only_one_side_computed_is_a_difference():
    (found,) = differences(PROVENANCE, without("metrics.frechet_distance"))
    assert found.key == "metrics.frechet_distance"
    assert found.second == "not recorded"


@pytest.mark.parametrize("key", ["extractor.weights_sha256", "real.fingerprint", "real.num_images"])
def test_what_one_side_does_not_record_forbids_comparing(key):
    for first, second in ((PROVENANCE, without(key)), (without(key), PROVENANCE)):
        (found,) = differences(first, second)
        assert found.matters
        assert "not recorded" in (found.first, found.second)


@pytest.mark.parametrize("key", ["generated.mode", "generated.seed", "generated.weights"])
def test_a_folder_lacks_what_only_models_have_without_harm(key):
    for first, second in ((PROVENANCE, without(key)), (without(key), PROVENANCE)):
        (found,) = differences(first, second)
        assert not found.matters
        assert found.key == key


def test_a_model_and_a_folder_of_as_many_images_compare():
    folder = copy.deepcopy(PROVENANCE)
    folder["generated"] = {
        "source": "samples",
        "fingerprint": "ba5",
        "image_shape": "3x32x32",
        "augmentation": "none",
        "num_images": 5000,
    }
    found = differences(PROVENANCE, folder)
    assert {d.key for d in found} == {f"generated.{key}" for key in ("source", "weights", "mode", "seed", "fingerprint")}
    assert not any(difference.matters for difference in found)


@pytest.mark.parametrize("section", ["extractor", "real", "metrics"])
def test_a_whole_section_that_is_missing_forbids_comparing(section):
    assert any(difference.matters for difference in differences(PROVENANCE, without(section)))


def with_several(*names):
    """The provenance of an evaluation with extractors in this order."""
    first, *others = (
        {"extractor": {**PROVENANCE["extractor"], "name": f"{name}_v2", "num_features": len(name)},
         "metrics": {"frechet_distance": {"of": name}}, "num_kept": len(name)}
        for name in names
    )  # fmt: skip
    real = {**PROVENANCE["real"], "num_kept": first["num_kept"]}
    additional = {"additional": dict(zip(names[1:], others, strict=True))} if others else {}
    return {**PROVENANCE, "extractor": first["extractor"], "metrics": first["metrics"], "real": real, **additional}


@pytest.mark.parametrize("order", [("shapes", "mnist"), ("shapes", "mnist", "cifar"), ("mnist", "cifar", "shapes")])
def test_the_order_of_extractors_does_not_matter(order):
    assert differences(with_several(*sorted(order)), with_several(*order)) == []


def test_an_extractor_is_compared_with_its_own_at_another_place():
    one, several = with_several("mnist"), with_several("shapes", "mnist")
    assert not any(each.matters for pair in ((one, several), (several, one)) for each in differences(*pair))
    other = with_several("mnist", "shapes")
    other["additional"]["shapes"]["extractor"]["weights_sha256"] = "def"
    (found,) = differences(with_several("shapes", "mnist"), other)
    assert (found.key, found.matters, found.second) == ("extractor.weights_sha256", True, "def")
    assert any(each.matters for each in differences(with_several("shapes"), with_several("mnist")))


def test_what_forbids_comes_first_and_keeps_its_order():
    other = changed("versions.torch", "2.12.0")
    other["generated"]["seed"] = 1
    other["extractor"]["resize"] = "none"
    other["real"]["num_images"] = 3
    found = differences(PROVENANCE, other)
    assert [d.key for d in found] == ["extractor.resize", "real.num_images", "generated.seed", "versions.torch"]
    assert [d.matters for d in found] == [True, True, False, False]


def test_differences_in_words_share_a_line_with_their_reason():
    found = [
        ProvenanceDifference("a.x", 1, 2, True, "because"),
        ProvenanceDifference("b", "not recorded", "here", True, "another thing"),
        ProvenanceDifference("a.y", None, 0, True, "because"),
    ]
    assert describe_differences(found) == (
        "  because:\n"
        "    a.x: 1 against 2\n"
        "    a.y: None against 0\n"
        "  another thing:\n"
        "    b: not recorded against here"
    )  # fmt: skip
    assert describe_differences([]) == ""


def test_nested_mappings_become_dotted_keys():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [1, {"f": 2}]}) == {"a.b.c": 1, "a.d": {}, "e": [1, {"f": 2}]}


LIKELIHOOD = {
    "likelihood": {"held_out": True, "source": "mnist/test", "fingerprint": "f00", "num_images": 10000, "num_samples": 500,
                   "of": "Bernoulli of binarised images", "weights": "raw", "seed": 0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "matters"),
    [
        ("num_samples", 50, True),
        ("of", "Bernoulli of grey values", True),
        ("fingerprint", "b00", True),
        ("weights", "ema", False),
    ],
)
def test_likelihoods_compare_where_all_but_the_model_is_the_same(key, value, matters):
    other = copy.deepcopy(LIKELIHOOD)
    assert not differences(LIKELIHOOD, other)
    other["likelihood"][key] = value
    (found,) = differences(LIKELIHOOD, other)
    assert found.key == f"likelihood.{key}"
    assert found.matters == matters
