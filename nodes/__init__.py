"""The ComfyUI shell: schemas and conversion only, every algorithm is in the engine beside it."""
