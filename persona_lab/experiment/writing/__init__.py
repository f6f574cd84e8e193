"""Documents that a language model writes: `persona-lab write`."""
