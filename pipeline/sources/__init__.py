"""Sources: where chunks and stored records come from."""
