"""Model servers for KServe, and what they need. Nothing here trains."""
