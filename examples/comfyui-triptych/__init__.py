"""Nodes for ComfyUI that have a Triptych server make pictures: copy this folder into custom_nodes."""

from .nodes import TriptychEdit, TriptychGenerate

NODE_CLASS_MAPPINGS = {"TriptychGenerate": TriptychGenerate, "TriptychEdit": TriptychEdit}
NODE_DISPLAY_NAME_MAPPINGS = {"TriptychGenerate": "Triptych", "TriptychEdit": "Triptych, from a picture"}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
