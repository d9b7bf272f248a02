"""Networks, their configuration and their image processor (torch, timm and transformers only).

Import from the modules, or from `afdcd_hf`. This file stays empty: transformers' Auto modules load the configuration
while they are themselves being imported, and must not pull the networks in at that point.
"""
