"""The image that the steps run in: the one place that names it.

VCA_IMAGE overrides it when a pipeline is compiled; a release sets it to an address with a digest.
"""

import os

from vca import __version__

IMAGE = os.environ.get("VCA_IMAGE", f"vca-python:{__version__}")
