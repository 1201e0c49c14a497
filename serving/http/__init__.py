"""HTTP: the application, uploads, admission, progress and the request log."""
