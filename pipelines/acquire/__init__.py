"""Songs from web addresses: polite HTTP, downloads under limits, licences and provenance."""
