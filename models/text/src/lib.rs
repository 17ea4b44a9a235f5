//! The text exhibits.
