"""Built-in data sources, one file each: where it comes from, its licence, its counts, its split.

A source file holds a literal `SOURCE` (name, title, licence, rows, split, modality; read without importing) and
`load(cache) -> {"train": columns, "test": columns, "classes": names, "notes": sentences}`. `cache` is a folder of the
source's own. Columns are arrays, lists of strings, or pictures as `notan.data.pictures` defines them; pixels are uint8
(N, C, H, W). A source without a "test" is split by key. "fallback" names the source to open when this one cannot be
reached.
"""
