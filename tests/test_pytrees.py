"""Dataclasses of the package are pytrees that JAX tells apart, also those with the same leaves and static values."""

import dataclasses
import importlib
import itertools
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import jaxgrad as jg
from jaxgrad._pytrees import pytree


def pytrees_of_the_package():
    """The classes that are pytrees, those of the extras left out."""
    names = [module.name for module in pkgutil.iter_modules(jg.__path__) if not module.ispkg and module.name != "__main__"]
    classes = {x for name in names for x in vars(importlib.import_module(f"jaxgrad.{name}")).values() if isinstance(x, type) and dataclasses.is_dataclass(x)}
    return sorted((cls for cls in classes if not jax.tree_util.all_leaves([hollow(cls)])), key=lambda cls: cls.__name__)


def hollow(cls):
    """An instance with a number in each field."""
    x = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(x, field.name, 0)
    return x


def test_no_two_classes_have_equal_structures():
    classes = pytrees_of_the_package()
    assert len(classes) > 20
    structures = [jax.tree.structure(hollow(cls)) for cls in classes]
    same = [(a.__name__, b.__name__) for (a, x), (b, y) in itertools.combinations(zip(classes, structures, strict=True), 2) if x == y]
    assert same == []


@pytree
@dataclasses.dataclass(frozen=True)
class Scaled:
    """One leaf among the fields that belong to the structure."""

    name: str = dataclasses.field(metadata={"static": True})
    value: jax.Array
    factor: int = dataclasses.field(metadata={"static": True}, default=2)


def test_leaves_and_static_fields_go_through_transformations():
    x = Scaled("a", jnp.arange(3.0))
    double = jax.jit(lambda x: dataclasses.replace(x, value=x.value * x.factor))(x)
    assert (double.name, double.factor, double.value.tolist()) == ("a", 2, [0, 2, 4])
    assert jax.tree_util.tree_leaves_with_path(x)[0][0] == (jax.tree_util.GetAttrKey("value"),)
    assert jax.tree.structure(x) == jax.tree.structure(double) != jax.tree.structure(Scaled("b", x.value))
    with pytest.raises(ValueError, match="Scaled"):
        jax.tree.map(jnp.add, x, Scaled("b", x.value))
