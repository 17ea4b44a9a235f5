//! The vision exhibits.
