"""How Sphinx builds the documentation: `scripts/docs`."""

from emsjax.version import __version__

project = "emsjax"
author = "The emsjax authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"emsjax {__version__}"
html_show_sphinx = False
html_copy_source = False

# A link to a page, a heading or an object that is not there ends the build.
nitpicky = True
myst_heading_anchors = 3
# Other projects' inventories would have to be fetched; their names stay without links.
nitpick_ignore_regex = [
    ("py:.*", rf"({package})\..*")
    for package in (
        "collections",
        "flax",
        "jax",
        "jnp",
        "nnx",
        "np",
        "numpy",
        "pathlib",
        "transformers",
    )
] + [("py:class", "PreTrainedTokenizerBase")]

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
