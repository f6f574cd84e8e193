"""What stages do to each other: order, relearning, transfer from trait to trait."""
