"""Sphinx: how the documentation is built, and what makes the build fail.

    make docs

Warnings are errors (-W). So is a public name without a docstring or without a place in
the reference: `check_reference` compares what was written with what is public.
"""

import importlib
import inspect
import pathlib
import sys

from sphinx.util import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import dsmooth_jax as ds

project = "dsmooth_jax"
author = "The dsmooth_jax developers"
copyright = "the dsmooth_jax developers, Apache-2.0"
version = release = ds.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "dsmooth_jax"
html_show_sourcelink = False
myst_heading_anchors = 3
default_role = "py:obj"  # `certify` in a docstring is a link where it can be one

suppress_warnings = ["ref.python"]  # `margin` may be of several records

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes and units, which say more
napoleon_custom_sections = ["Guarantee"]

# Modules whose public functions and classes are the reference's second half.
MODULES = [
    "report.figures",
    "report.heatmaps",
    "report.comparison",
    "models",
    "data",
    "training",
    "training.augment",
    "training.optimizers",
    "training.losses",
    "training.step",
    "training.loop",
    "storage.workdir",
    "storage.checkpoint",
]


def public_names():
    """Full names, as the reference must have them: of the package, of the modules."""
    yield from (f"dsmooth_jax.{name}" for name in ds.__all__)
    for name in MODULES:
        module = importlib.import_module(f"dsmooth_jax.{name}")
        public = getattr(module, "__all__", None)  # a folder's, else what is defined
        for key, value in vars(module).items():
            is_ours = getattr(value, "__module__", None) == module.__name__
            is_code = inspect.isfunction(value) or inspect.isclass(value)
            is_public = key in public if public else is_ours and key[0] != "_"
            if is_code and is_public:
                yield f"dsmooth_jax.{name}.{key}"


def check_reference(app, environment):
    """Warns of each public name without an entry, which only a docstring makes."""
    written = set(environment.get_domain("py").objects)
    for name in sorted(set(public_names()) - written):
        logging.getLogger(__name__).warning(
            f"{name} is public, but not in the reference: add it to docs/api.md, and a "
            "docstring where there is none"
        )


def setup(app):
    """Sphinx calls this."""
    app.connect("env-check-consistency", check_reference)
