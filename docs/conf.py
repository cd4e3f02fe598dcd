"""How Sphinx builds the site: `python -m sphinx -W --keep-going -j 2 docs docs/_build`, without a network.

Pages with `{code-cell}`s are notebooks, and are executed: an error, or a warning that they print, fails the build.
"""

import os
import sys
from pathlib import Path

import jasgnas

sys.path.insert(0, str(Path(__file__).parent / "extensions"))
# What the notebooks' kernels inherit. JAX would look for accelerators otherwise, and say so; and these networks are so
# small that compiling them takes far longer than running them.
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

project = "jasgnas"
author = copyright = "the authors of jasgnas"
release = version = jasgnas.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "public_names", "recorded"]
exclude_patterns = ["_build", "jupyter_execute"]
suppress_warnings = ["myst.header"]  # recorded tables start with headings of a lower level
default_role = "py:obj"  # what docstrings put in backticks becomes a link where it is a public name
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "warn"

autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = f"jasgnas {release}"
html_static_path = ["_static"]
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False}
