"""What an experiment consists of, before anything of it exists: cells, recipes, order, cost. No torch."""
