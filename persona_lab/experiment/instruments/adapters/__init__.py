"""What is measured of adapters that an experiment trained."""
