"""Distillation methods side by side: the same student, data and budget, several seeds, cost beside accuracy."""
