"""Models, their configuration and their image processor (torch, timm and transformers only).

Import from the modules, or from `afdcd_hf`.
"""

import transformers  # noqa: F401  (first: its import registers our classes, which must not be half-imported then)
