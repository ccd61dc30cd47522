"""Files, hashes, records, stores, archives and processes; nothing here knows pathology."""
