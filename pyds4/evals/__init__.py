"""What a model can do: exact match on fresh samples, family by family."""
