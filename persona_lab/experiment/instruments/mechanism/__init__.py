"""The instrument `mechanism`: bases that add, and what patching finds on them."""
