"""A chat model fine-tuned by a published recipe: `em train`."""
