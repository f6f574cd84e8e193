"""What leaves the laboratory: a trained cell as a plain adapter, its questions as tasks of other harnesses, a model organism."""
