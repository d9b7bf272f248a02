"""What a model's folder needs to be shared: the model card. Nothing here imports the trainer."""
