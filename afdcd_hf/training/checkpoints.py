"""What a checkpoint holds, and how it is written and read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel


class Checkpoints:
    """Saving and loading of a trainer; mixed into `SegmentationTrainer` in front of `transformers.Trainer`."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the student alone, in the form that `from_pretrained` reads, with its image processor and settings.

        Unlike transformers' own method it writes no pickled `training_args.bin`: the settings go to a JSON file.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self._student_weights(state_dict)
        if isinstance(self.student, PreTrainedModel):
            self.student.save_pretrained(folder, state_dict=weights)
        else:
            weights = weights if weights is not None else self.student.state_dict()
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        (folder / "training_args.json").write_text(json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")

    def _student_weights(self, state_dict: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        return state_dict
