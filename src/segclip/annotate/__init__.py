"""Annotations of a folder of photos, for people to correct."""
