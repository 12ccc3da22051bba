"""Other people's tools over this package: diffusers, ComfyUI, optimum."""
