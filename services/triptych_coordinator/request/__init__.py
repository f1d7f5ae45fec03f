"""What a request says: the only room that knows GenerationParameters."""
