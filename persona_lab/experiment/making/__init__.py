"""Making what is planned: documents, bases, stages, scores; by any number of workers."""
