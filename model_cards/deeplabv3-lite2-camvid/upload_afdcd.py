"""What `push_to_hub` of models, configurations and image processors leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_GENERIC = "This model card has been automatically generated."


class WithoutGenericCard:
    """Mixin: `push_to_hub` uploads no card that transformers made up; `afdcd card` and `afdcd push` make a real one."""

    def _upload_modified_files(self, working_dir: str, *args: Any, **options: Any) -> Any:
        card = Path(working_dir, "README.md")
        if card.is_file() and _GENERIC in card.read_text(encoding="utf-8", errors="replace"):
            card.unlink()
        return super()._upload_modified_files(working_dir, *args, **options)  # type: ignore[misc]
