"""Segmentation of images, and writing of the results."""
