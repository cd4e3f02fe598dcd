"""Sub-networks in folders: saved, run without the code of the model, and made trainable again."""
