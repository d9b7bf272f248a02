"""Evaluation of a segmenter on a labelled dataset, and the results file."""
