"""Files that stand in an export as they stand here: they run where this package is not installed."""
