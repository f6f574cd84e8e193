"""Documents that a language model writes: universe, facts, genres, ideas, document, critique and revision, checks. The writer is passed in."""
