"""The demonstration: a real ComfyUI with this pack in it (`comfyui`, `client`), and the shipped workflows run on it."""
