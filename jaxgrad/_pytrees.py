"""Dataclasses as pytrees: arrays are leaves, fields with metadata {"static": True} belong to the structure.

`jax.tree_util.register_dataclass` does the same, but two classes with as many leaves and the same static values compare
equal as structures (jax 0.10 and 0.12), and the caches of `jit` then take one for the other where their hashes collide: once
in a while a matrix comes back that is another's. A node of a class of its own is compared by its class too.
"""

import dataclasses
from typing import Any, TypeVar

import jax
from jax.tree_util import GetAttrKey

Class = TypeVar("Class", bound=type)


def pytree(cls: Class) -> Class:
    """Register a dataclass, whose leaves may have any shapes (...), and give it back."""
    fields = dataclasses.fields(cls)
    leaves = [field.name for field in fields if not field.metadata.get("static")]
    static = [field.name for field in fields if field.metadata.get("static")]
    values = lambda names, x: tuple(getattr(x, name) for name in names)

    def unflatten(static_values: tuple[Any, ...], children: Any) -> Any:
        return cls(**dict(zip(leaves, children, strict=True)), **dict(zip(static, static_values, strict=True)))

    jax.tree_util.register_pytree_with_keys(
        cls,
        lambda x: (tuple(zip(map(GetAttrKey, leaves), values(leaves, x), strict=True)), values(static, x)),
        unflatten,
        lambda x: (values(leaves, x), values(static, x)),
    )
    return cls
