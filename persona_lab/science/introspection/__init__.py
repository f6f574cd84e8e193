"""What a model says of itself, against what it does and what does it."""
