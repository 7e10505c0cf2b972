"""One file per paper that decodes."""
