"""One file per paper that measures.

`measure(model, data) -> {name: number, list of numbers, or matplotlib Figure}`. data: batches (dicts of columns), to go
through as often as one likes. model: a module with what the file's CARD says it `asks` for:

    encode(batch) -> (B, D)                                             an encoder's features
    dual                                                                two encoders with a joint space (`nets.DualEncoder`)
    states(batch) -> [(B, T, E), ...], (B, T)                           a language model's: after its embeddings, after each
                                                                        block, last what its head reads; and which are text

An inspector trains nothing and changes nothing. Its settings are keyword-only, with literal defaults.
"""
