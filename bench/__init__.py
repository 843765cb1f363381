"""An exported file becomes evidence."""
