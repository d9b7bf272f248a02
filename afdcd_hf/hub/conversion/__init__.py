"""Released checkpoints (`.pth`) turned into folders for `from_pretrained`, and ImageNet weights into timm's names."""
