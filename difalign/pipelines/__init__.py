"""One adapter a model family, behind ``core.protocols.Pipeline``; diffusers is imported inside functions."""
