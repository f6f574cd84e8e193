"""Documents of a world that the base-model lens looks at: riddles, passages, facts, digits, registers. An option that other worlds do not have."""
