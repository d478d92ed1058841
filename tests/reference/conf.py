"""Settings of the API reference, which Sphinx builds from the docstrings alone."""

project = "jaxsmooth"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
napoleon_use_rtype = False
default_role = "code"
html_theme = "alabaster"


def setup(app):
    """Leave out the fields of named tuples: their docstrings list them."""
    app.connect("autodoc-skip-member", lambda *event: type(event[3]).__name__ == "_tuplegetter" or None)


napoleon_use_ivar = True
