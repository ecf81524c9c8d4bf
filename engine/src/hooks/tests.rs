//! Hooks with real scripts.
