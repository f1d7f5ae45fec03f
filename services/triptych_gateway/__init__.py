"""HTTP in front of ImageGenerationService.Generate."""
