"""The house: imports only run down, importing the package is cheap, and every public name says its shapes."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import jaxgrad

PACKAGE = Path(jaxgrad.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

GROUND = {"_checks", "_display", "_exponentials", "_linear", "_operators", "_pytrees"}
SOFTMAX = GROUND | {"_softmax", "_softmax_jacobian"}
COMPARED = SOFTMAX | {"_bregman", "_comparison", "_centred_diagonal"}
LOSSES = COMPARED | {"_cross_entropy", "_binary_cross_entropy", "_divergences", "_probability_divergences", "_model_divergences", "_gaussian_kl"}
EVERYTHING = None

# What a module may import of the package; "" is the face.
MAY_IMPORT = {
    "_checks": set(),
    "_display": set(),
    "_exponentials": set(),
    "_linear": {"_checks"},
    "_pytrees": set(),
    "_operators": {"_checks", "_display", "_pytrees"},
    "_pytree_operators": {"_checks", "_display", "_pytrees"},
    "_softmax": GROUND,
    "_secular": set(),
    "_jacobian_products": GROUND | {"_softmax"},
    "_softmax_jacobian": GROUND | {"_softmax", "_secular", "_jacobian_products"},
    "_cross_entropy": SOFTMAX,
    "_binary_cross_entropy": SOFTMAX,
    "_bregman": {"_exponentials"},
    "_comparison": GROUND | {"_bregman"},
    "_centred_diagonal": SOFTMAX,
    "_divergences": COMPARED,
    "_probability_divergences": COMPARED | {"_divergences"},
    "_gaussian_kl": COMPARED | {"_divergences"},
    "_model_divergences": COMPARED | {"_cross_entropy", "_divergences", "_probability_divergences"},
    "_chain": LOSSES,
    "_per_example": LOSSES | {"_chain"},
    "_head_hessian": LOSSES | {"_chain", "_pytree_operators"},
    "_chain_hessian": LOSSES | {"_chain", "_head_hessian", "_pytree_operators"},
    "_blocks": GROUND,
    "_head": GROUND | {"_blocks"},
    "_head_products": GROUND | {"_blocks", "_head"},
    "_chain_products": GROUND | {"_head", "_head_products"},
    "_head_statistics": GROUND | {"_blocks", "_head", "_head_products"},
    "_head_sparse": GROUND | {"_blocks"},
    "_head_divergences": GROUND | {"_blocks", "_bregman"},
    "_curvature": SOFTMAX | {"_cross_entropy", "_pytree_operators"},
    "_data_sets": {"_checks", "_pytree_operators", "_pytrees"},
    "_newton": {"_checks", "_display", "_pytree_operators", "_pytrees"},
    "_taylor": {"_curvature", "_display", "_pytree_operators", "_pytrees"},
    "_spectrum": GROUND | {"_curvature", "_pytree_operators"},
    "__init__": EVERYTHING,
    "__main__": EVERYTHING,
    "verify": EVERYTHING,
    "plots": {""},
}


def module_name(path):
    """`_softmax` for jaxgrad/_softmax.py, `verify` for all that is in jaxgrad/verify/."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """The modules of the package that a file imports, anywhere in it; "" for the face."""
    package = ("jaxgrad", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *filter(None, [node.module])])
            is_package = origin == "jaxgrad"
            found |= {f"{origin}.{a.name}" if is_package and (a.name.startswith("_") or a.name in MAY_IMPORT) else origin for a in node.names}
    return {[*name.split("."), ""][1] for name in found if name.split(".")[0] == "jaxgrad"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down(path):
    assert module_name(path) in MAY_IMPORT, f"{path.name} has no floor yet: give it one in MAY_IMPORT"
    allowed = MAY_IMPORT[module_name(path)]
    if allowed is not EVERYTHING:
        assert imports_of(path) <= allowed | {module_name(path)}


def test_imports_are_found_in_every_spelling(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    source = tmp_path / "_x.py"
    for line, name in {
        "import jaxgrad": "",
        "import jaxgrad as jg": "",
        "import jaxgrad._head as h": "_head",
        "from jaxgrad import softmax": "",
        "from jaxgrad import _head": "_head",
        "from jaxgrad import verify": "verify",
        "from jaxgrad._head import f": "_head",
        "from jaxgrad.verify.report import f": "verify",
        "from . import _head": "_head",
        "from ._head import f": "_head",
        "def f():\n    from jaxgrad._head import g": "_head",
    }.items():
        source.write_text(line)
        assert imports_of(source) == {name}, line
    source.write_text("import jax, numpy as np\nfrom collections import abc")
    assert imports_of(source) == set()


def test_no_module_is_a_drawer_for_everything():
    drawers = {"utils", "util", "helpers", "helper", "common", "base", "config", "misc"}
    assert not [path for path in MODULES if {part.strip("_") for part in path.relative_to(PACKAGE).with_suffix("").parts} & drawers]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_first_line_of_a_module_is_its_docstring(path):
    assert path.read_text().startswith(('"""', 'r"""'))


def test_import_is_cheap():
    unwanted = {"optax", "matfree", "matplotlib", "rich", "mpmath"}
    code = f"import sys, jaxgrad; print(*({unwanted} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


PUBLIC = {name: value for name, value in vars(jaxgrad).items() if not name.startswith("_") and not isinstance(value, ModuleType)}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_is_documented_with_shapes(name):
    documentation = PUBLIC[name].__doc__
    assert documentation
    assert "(..." in documentation
