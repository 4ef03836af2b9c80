"""The package of a shop."""
