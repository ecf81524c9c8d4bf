//! Watching, scanning and describing mirrored directories.
