"""Certificates: files, contexts, and certificates for development."""
