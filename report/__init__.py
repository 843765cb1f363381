"""Records become what people look at: tables, figures, pages."""
