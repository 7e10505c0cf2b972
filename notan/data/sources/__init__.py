"""Built-in named sources, one small file each."""
