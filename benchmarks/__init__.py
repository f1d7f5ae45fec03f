"""What measures Triptych: how well it follows prompts, and what pictures, bytes and company cost."""
