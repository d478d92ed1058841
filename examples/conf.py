"""Settings of the documentation: the guides, the API by task, the examples, and notebooks that the build executes."""

from typing import Any

import jaxsmooth

project = "jaxsmooth"
author = "The jaxsmooth authors"
version = release = jaxsmooth.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["**/.ipynb_checkpoints", "**/jupyter_execute"]
html_theme = "furo"
html_title = f"jaxsmooth {version}"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True


def setup(app: Any) -> None:
    """Leave out the fields of named tuples: their docstrings list them."""
    app.connect("autodoc-skip-member", lambda *event: type(event[3]).__name__ == "_tuplegetter" or None)
