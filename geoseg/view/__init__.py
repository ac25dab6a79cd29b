"""Looking at results: pages, cards in notebooks, figures, a server on localhost, and a style for QGIS."""
