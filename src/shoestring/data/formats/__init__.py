"""File formats: one file each, a method of kind 'format' named by the suffix it reads.

Each is called with a path and the `TextReading` it decodes text with, and yields documents.
"""
