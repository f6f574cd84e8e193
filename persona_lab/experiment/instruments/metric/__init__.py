"""The instrument `metric`."""
