"""The APIs of OpenAI: Images and Models."""
