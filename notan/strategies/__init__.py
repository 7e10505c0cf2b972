"""One file per paper that decodes: contexts to run beside the prompt, and how their logits become one choice."""
