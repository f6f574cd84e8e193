"""The instrument `measure`."""
