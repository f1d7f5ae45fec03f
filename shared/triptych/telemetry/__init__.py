"""What services tell of their work: metrics and traces by OpenTelemetry, whose API does nothing when off."""
