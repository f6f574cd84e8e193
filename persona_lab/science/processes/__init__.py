"""The measure of a process, and the metric between processes."""
