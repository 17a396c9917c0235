"""Thin commands: parse, check, call ``difalign.build``."""
