"""Post-filters: what looks at decoded pictures before they are shown."""
