"""One file per paper that trains. Files starting with an underscore are not methods."""
