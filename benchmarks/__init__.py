"""What measures Triptych: prompt adherence of the default model, and the cost of pictures, bytes and company."""
