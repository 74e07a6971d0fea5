"""Imports go down the layers only, and what is the business of one module stays there; read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import genimg

ROOT = Path(genimg.__file__).resolve().parent
LAYERS = {
    "genimg": 0,
    "genimg.errors": 0,
    "genimg.types": 0,
    "genimg.utils": 1,
    "genimg.schedules": 2,
    "genimg.data": 3,
    "genimg.diffusion": 3,
    "genimg.losses": 3,
    "genimg.networks": 3,
    "genimg.methods": 4,
    "genimg.evaluation": 5,
    "genimg.inference": 5,
    "genimg.training": 6,
    "genimg.config": 7,
    "genimg.exporting": 8,
    "genimg.playground": 6,
    "genimg.reporting": 8,
    "genimg.api": 9,
    "genimg.sweeps": 9,
    "genimg.commands": 10,
    "genimg.cli": 11,
    "genimg.eval": 12,
    "genimg.train": 12,
    "genimg.verify": 12,
}
"""The number of each package: it may import from itself and from packages of lower numbers, whose equals it does not know."""
BELOW_CONFIG = [name for name, layer in LAYERS.items() if layer < LAYERS["genimg.config"]]


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def component(module):
    """The part of genimg that a module belongs to: its package, or itself at the top level."""
    return ".".join(module.split(".")[:2])


def imports(tree):
    """(module, name) for every import, wherever it stands; the name is None for ``import module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield from ((node.module, alias.name) for alias in node.names)


def imported_modules(tree):
    """Full names of genimg's modules that are imported; ``from genimg import schedules`` is genimg.schedules."""
    for module, name in imports(tree):
        if module.split(".")[0] == "genimg":
            yield f"{module}.{name}" if f"{module}.{name}" in TREES else module


def test_the_checks_see_the_whole_package():
    assert {"genimg.cli", "genimg.training.update", "genimg.methods.gan", "genimg.data.datasets.builtin"} <= TREES.keys()
    assert ("genimg.training.update", "Updater") in set(imports(TREES["genimg.training.trainer"]))
    assert "genimg.config.instantiate" in set(imported_modules(TREES["genimg.commands.prepare"]))


def test_every_module_has_a_layer():
    for module in TREES:
        assert component(module) in LAYERS, f"decide the layer of {module} and add it to LAYERS"


def test_a_module_imports_only_from_its_own_package_and_lower_layers():
    for module in TREES.keys() - {"genimg"}:  # which only names what the API is
        own = component(module)
        for imported in imported_modules(TREES[module]):
            other = component(imported)
            allowed = other == own or LAYERS[other] < LAYERS[own]
            assert allowed, f"{module} (layer {LAYERS[own]}) imports {imported} (layer {LAYERS[other]})"


def calls(tree, attribute):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == attribute
    ]


def test_only_the_updater_and_the_projector_call_backward_or_an_optimizers_step():
    for module in TREES:
        backward = calls(TREES[module], "backward")
        # Method.step takes its batch; an optimizer's step takes nothing, or a closure.
        steps = [node for node in calls(TREES[module], "step") if len(node.args) + len(node.keywords) < 2]
        if module in ("genimg.training.update", "genimg.inference.projection"):  # of weights, and of latents
            assert (len(backward), len(steps)) == (1, 1)
        else:
            assert (backward, steps) == ([], [])


def names_targets(tree):
    """Whether a module reads the ``_target_`` of a config's node as the name of something to import."""
    return any(isinstance(node, ast.Attribute) and node.attr == "import_module" for node in ast.walk(tree))


def test_only_the_config_layer_turns_names_of_a_config_into_objects():
    assert not any(
        name == "instantiate" and module.startswith("hydra") for tree in TREES.values() for module, name in imports(tree)
    )
    importing = [module for module, tree in TREES.items() if names_targets(tree)]
    # The others import optional packages, or genimg's own modules, by constant names.
    assert "genimg.config.instantiate" in importing
    for module in set(importing) - {"genimg.config.instantiate"}:
        for call in calls(TREES[module], "import_module"):
            name = call.args[0]
            begins = name.values[0] if isinstance(name, ast.JoinedStr) else name
            is_package = module == "genimg.exporting.formats" and isinstance(begins, ast.Name)  # of a table of constants
            known = isinstance(begins, ast.Constant) and str(begins.value).split(".")[0]
            assert known or is_package, f"{module} imports what is not known beforehand"


def test_only_the_top_layer_knows_hydra():
    for module in [name for name in TREES if component(name) in BELOW_CONFIG]:
        packages = {imported.split(".")[0] for imported, _ in imports(TREES[module])}
        assert not packages & {"hydra", "omegaconf"}


def test_the_command_line_starts_without_torch_and_numpy():
    program = (
        "import sys, genimg.cli; watched = {'torch', 'numpy', 'torchvision', 'PIL', 'genimg', 'hydra'}; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & watched))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "['genimg', 'hydra']"


@pytest.mark.parametrize("command", ["evaluate", "export", "sample", "translate"])
def test_what_logs_no_training_does_not_import_tensorboard(command):
    program = f"import sys, genimg.commands.{command}; print('torch.utils.tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
