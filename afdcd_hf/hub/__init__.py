"""Publishing: zoo, conversion, model cards, push, verify. Nothing here imports the trainer."""
