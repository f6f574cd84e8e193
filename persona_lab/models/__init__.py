"""Base models and adapters: what is trained and asked."""
