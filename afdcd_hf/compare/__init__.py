"""Compare distillation methods: same student, data and budget, several seeds, cost next to accuracy."""
