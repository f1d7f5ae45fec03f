"""The API of AUTOMATIC1111, /sdapi/v1."""
