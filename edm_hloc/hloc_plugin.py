"""`import edm_hloc.hloc_plugin` registers EDM and EfficientLoFTR as matchers of hloc.

It is the name under which scripts import `edm_hloc.interop.hloc_plugin`.
"""

from edm_hloc.interop.hloc_plugin import CONFS, HlocError, register

__all__ = ["CONFS", "HlocError", "register"]

register()
