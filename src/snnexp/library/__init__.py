"""snnexp from Python: what `import snnexp` offers (docs/library.md). Nothing is imported here."""
