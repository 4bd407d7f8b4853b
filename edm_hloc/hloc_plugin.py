"""`import edm_hloc.hloc_plugin` makes EDM and EfficientLoFTR matchers of hloc.

The name under which scripts know `edm_hloc.interop.hloc_plugin`; importing it registers the models.
"""

from edm_hloc.interop.hloc_plugin import CONFS, HlocError, register

__all__ = ["CONFS", "HlocError", "register"]

register()
