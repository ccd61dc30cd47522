"""Every small part that tests build: models, data, endpoints."""
