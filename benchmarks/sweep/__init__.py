"""What a whole sweep costs: our engine beside what users do, on the same files, with the verdict of equality."""
