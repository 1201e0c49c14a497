"""Storage: a local path or an S3 prefix behind one class, atomic local writes, and leases."""
