"""Whether it holds: claims and nodes made once more, and what this machine can do."""
