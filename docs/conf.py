"""The documentation site: `nox -s docs` builds it."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "pulsecart"
author = "The pulsecart developers"
copyright = author  # noqa: A001 (Sphinx's name)
release = metadata.version("pulsecart")

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated", "docstrings"]
exclude_patterns = ["_build"]
smartquotes = False  # -- begins an option

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4

add_module_names = False
autoclass_content = "both"
autodoc_default_options = {
    "members": True,
    "inherited-members": "BaseException,Event,EventError,Exception,Mapping,Protocol,PublishError,PulsecartError",
    "member-order": "bysource",
}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_display_short_literal_types = True
python_maximum_signature_line_length = 80
# Not linked: names of other packages, whose inventories would have to be fetched; type variables; private names.
nitpick_ignore_regex = [("py:.*", r"(?!pulsecart\.).*"), ("py:.*", r".*\.(\w+T|EventClass|_\w+)")]

html_theme = "furo"
html_title = f"pulsecart {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": "https://github.com/pulsecart/pulsecart/",
    "source_branch": "main",
    "source_directory": "docs/",
}
