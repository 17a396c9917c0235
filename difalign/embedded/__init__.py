"""The world of the shipped tiny models: its scenes, captions, renderer and verifier."""
