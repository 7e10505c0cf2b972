"""A row becomes views: augmentations and masks, batched, drawn from keys."""
