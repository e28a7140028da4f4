"""Access to this computer for all rooms: writing files, the cache folder, compiled libraries."""
