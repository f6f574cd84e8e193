"""H0 to H12: as likelihoods, in a tournament, and what a design can tell apart."""
