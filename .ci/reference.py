"""The reference of the public names as HTML, made of their docstrings by pdoc: `python .ci/reference.py FOLDER`."""

import inspect
import sys
from pathlib import Path
from typing import Any

import jax
import pdoc
from jax.typing import ArrayLike
from markupsafe import Markup, escape
from matplotlib.axes import Axes

# Types as one writes them, for what pdoc makes of them: all that they consist of, and where it is defined.
WRITTEN = {ArrayLike | None: "ArrayLike | None", ArrayLike: "ArrayLike", jax.Array: "jax.Array", Axes: "matplotlib.axes.Axes"}


class Annotation:
    """A type that is shown as it is written."""

    def __init__(self, annotation: Any) -> None:
        """Keep the text."""
        self.text = written(inspect.formatannotation(annotation))

    def __repr__(self) -> str:
        """The text."""
        return self.text


def written(text: str) -> str:
    """`text` with its types as one writes them."""
    for annotation, name in WRITTEN.items():
        text = text.replace(inspect.formatannotation(annotation), name)
    return text


def format_signature(signature: inspect.Signature, colon: bool) -> Markup:
    """The signature as HTML."""
    of = lambda annotation: annotation if annotation is inspect.Parameter.empty else Annotation(annotation)
    parameters = [parameter.replace(annotation=of(parameter.annotation)) for parameter in signature.parameters.values()]
    return pdoc.render_helpers.format_signature(signature.replace(parameters=parameters, return_annotation=of(signature.return_annotation)), colon)


pdoc.render.env.filters["format_signature"] = format_signature
pdoc.render.env.filters["escape"] = lambda text: escape(written(text))
pdoc.render.configure(docformat="google")
pdoc.pdoc("jaxgrad", "jaxgrad.verify", "jaxgrad.plots", output_directory=Path(sys.argv[1]))
